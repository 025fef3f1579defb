//! The launch of each kernel: its blocks, threads and parameters, from sizes and addresses alone.

use super::buckets::SPLIT_TOKENS;
use super::driver::{Address, Argument, Chip, Launch, Types};
use super::products::{NOTHING, Product, Sums};
use super::step::{Count, Layout};
use crate::plan::Reserved;
use crate::shape::ModelShape;
use crate::weights::Dtype;

/// Chunks of keys and values that attention in bf16 has under way, in prefill for a block, in decode for each warp.
const ATTENTION_STAGES: usize = 4;
const DECODE_STAGES: usize = 3;
/// Positions of a chunk.
const CHUNK: usize = 32;

/// Most warps of a block of decode attention in bf16, and how many keep a multiprocessor busy.
const DECODE_WARPS: usize = 8;

/// How often a block's warps take a split each before it is worth cutting a row among blocks, which costs a kernel that
/// merges, and among how many it must be.
const DECODE_ROUNDS: usize = 2;
const DECODE_BLOCKS: usize = 4;

/// Parts of a row's logits that are looked at by blocks of their own, as `sampling.cu` has it.
pub(super) const SURVEYED: usize = 32;

/// Heads that a block of `turn_heads` takes.
const TURN_HEADS: usize = 4;

/// Query heads that a block of decode attention takes.
const DECODE_QUERIES: usize = 16;

/// Most blocks along x that kernels with a loop over everything are given.
const MOST_BLOCKS: u64 = 1024;

/// Most blocks that a launch may have along y or z.
pub const MOST_ACROSS: usize = 65_535;

/// Where the weights of a layer lie; 0 for what the model does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the model's tensors")]
pub struct LayerAddresses {
    pub attn_norm: Address,
    pub qkv: Address,
    pub qkv_bias: Address,
    pub q_norm: Address,
    pub k_norm: Address,
    pub o: Address,
    pub ffn_norm: Address,
    pub gate_up: Address,
    pub down: Address,
}

/// Where a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the model's tensors")]
pub struct ModelAddresses {
    pub embed: Address,
    pub layers: Vec<LayerAddresses>,
    pub norm: Address,
    pub head: Address,
    /// Per position the cosines of half a head, then the sines.
    pub angles: Address,
}

/// Where the activations of a step lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activations {
    /// The residual stream, f32, `[tokens, hidden]`.
    pub hidden: Address,
    /// `[tokens, hidden]`.
    pub normed: Address,
    /// Sums of a product, f32, `[parts, tokens, outputs]`.
    pub sums: Address,
    /// `[tokens, heads · head_dim]`.
    pub queries: Address,
    /// `[tokens, heads · head_dim]`.
    pub attended: Address,
    /// f32, `[tokens, 2 · ffn]`; of models in f32, and for a library's products.
    pub gate_up: Address,
    /// `[tokens, ffn]`.
    pub gated: Address,
    /// f32, `[outputs, vocab]`.
    pub logits: Address,
    /// Softmax states of decode attention, `[rows, heads, splits]` pairs of f32.
    pub shares: Address,
    /// Its sums, f32, `[rows, heads, splits, head_dim]`.
    pub partial: Address,
    /// What is known of logits' parts, `[outputs, 32]` records of four words.
    pub survey: Address,
    /// Drawn tokens, `[outputs]` records of four words.
    pub drawn: Address,
}

/// What a step's launches depend on besides the model.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Sizes.
    pub shape: &'a ModelShape,
    /// Weights.
    pub model: &'a ModelAddresses,
    /// Activations.
    pub activations: &'a Activations,
    /// The pool of keys and values.
    pub pool: Address,
    /// Its blocks and their positions.
    pub(super) blocks: Reserved,
    /// Where the step's data lies.
    pub step: Address,
    /// Its layout.
    pub layout: Layout,
    /// Types of numbers.
    pub types: Types,
    /// Whether the driver has a library that multiplies.
    pub library: bool,
    /// What the card has of what kernels share out.
    pub chip: Chip,
}

/// For how many of each thing blocks are launched; the step's counts may be smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Tokens, at least 1.
    pub tokens: usize,
    /// Rows of one token.
    pub decode_rows: usize,
    /// Splits of the longest of them.
    pub splits: usize,
    /// Tiles of prefill attention.
    pub tiles: usize,
    /// Outputs.
    pub outputs: usize,
}

pub(super) struct Arguments(Vec<Argument>);

impl Arguments {
    pub(super) fn add(mut self, argument: impl Into<Argument>) -> Self {
        self.0.push(argument.into());
        self
    }
}

pub(super) fn launch(kernel: &'static str, blocks: [usize; 3], threads: u32, arguments: Arguments) -> Launch {
    Launch {
        kernel,
        blocks: blocks.map(|b| b as u32),
        threads,
        shared_bytes: 0,
        arguments: arguments.0,
        instead: None,
    }
}

impl Surroundings<'_> {
    fn words(&self, at: usize) -> Address {
        self.step + 4 * at as u64
    }

    /// Begins a kernel's parameters with the address of its count.
    pub(super) fn counted(&self, count: Count) -> Arguments {
        Arguments(Vec::new()).add(self.words(self.layout.counts + count as usize))
    }

    /// `Paging` of `paging.cuh`, then the two words after it where there are any.
    fn paging(&self, more: [u32; 2]) -> [u64; 3] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let Reserved { blocks, block_tokens } = self.blocks;
        [pair(blocks, self.shape.kv_heads as u32), pair(block_tokens, more[0]), u64::from(more[1])]
    }

    /// `Attention` of `attention.cuh`.
    fn attention(&self, layer: usize) -> Argument {
        let [a, b, c] = self.paging([layer as u32, self.shape.heads as u32]);
        let (rows, tables) = (self.words(self.layout.rows), self.words(self.layout.tables));
        Argument([self.activations.queries, self.pool, rows, tables, a, b, c])
    }

    /// Adds a product's sums to the residual stream, and norms it.
    fn norm(&self, count: Count, rows: Address, weight: Address, blocks: usize, sums: Sums) -> Launch {
        let arguments = self
            .counted(count)
            .add(rows)
            .add(self.activations.hidden)
            .add(self.activations.sums)
            .add(sums.parts as u32)
            .add(sums.apart as u64)
            .add(weight)
            .add(self.activations.normed)
            .add(self.shape.hidden as u32)
            .add(self.shape.rms_eps as f32);
        launch("rms_norm", [blocks, 1, 1], 512, arguments)
    }

    /// What is between the fused projection and attention: from the bias on, to the queries' factor.
    fn turned(&self, layer: &LayerAddresses, arguments: Arguments) -> Arguments {
        arguments
            .add(layer.qkv_bias)
            .add(layer.q_norm)
            .add(layer.k_norm)
            .add(self.shape.rms_eps as f32)
            .add(self.model.angles)
            .add(1.0 / (self.shape.head_dim as f32).sqrt())
    }

    fn turn_heads(&self, tokens: usize, l: usize, layer: &LayerAddresses, sums: Sums) -> Launch {
        let shape = self.shape;
        let [a, b, _] = self.paging([0, 0]);
        let arguments = self
            .counted(Count::Tokens)
            .add(self.words(self.layout.tokens))
            .add(self.activations.sums)
            .add(sums.parts as u32)
            .add(sums.apart as u64);
        let mut arguments = self.turned(layer, arguments).add(self.activations.queries).add(self.pool);
        arguments.0.push(Argument([a, b, 0, 0, 0, 0, 0]));
        let arguments = arguments.add(l as u32).add(shape.heads as u32);
        let heads = shape.heads + 2 * shape.kv_heads;
        launch("turn_heads", [tokens, heads.div_ceil(TURN_HEADS), 1], 32 * TURN_HEADS as u32, arguments)
    }

    /// Whether weights are in bf16, not f32.
    pub(super) fn bf16(&self) -> bool {
        self.types.element == Dtype::Bf16
    }

    /// Bytes of shared memory for chunks in bf16 attention, `stages` of them, as `Ring` of `chunks.cuh` has them.
    fn ring_bytes(&self, stages: usize) -> usize {
        let padded = self.shape.head_dim.next_multiple_of(16);
        let row = 2 * if padded.is_multiple_of(64) { padded } else { padded + 8 };
        2 * CHUNK * if self.types.kv_fp8 { stages * padded + row } else { stages * row }
    }

    /// Whether decode attention takes a token's projection as it comes, without `turn_heads`: where all rows are of one
    /// token, and a block has all queries of a KV head.
    fn turned_inside(&self, extent: Extent) -> bool {
        self.bf16() && extent.tiles == 0 && self.shape.heads / self.shape.kv_heads <= DECODE_QUERIES
    }

    /// Attention of rows of one token in bf16; `sums` where they are to be turned first.
    fn decode_bf16(
        &self,
        extent: Extent,
        l: usize,
        layer: &LayerAddresses,
        sums: Option<Sums>,
    ) -> Vec<Launch> {
        let (shape, activations, head_dim) = (self.shape, self.activations, self.shape.head_dim);
        let group = shape.heads / shape.kv_heads;
        let (heads, across) = (group.min(DECODE_QUERIES), shape.kv_heads * group.div_ceil(DECODE_QUERIES));
        let blocks = extent.decode_rows * across;
        let shared_bytes = |warps: usize| {
            let rings = warps * self.ring_bytes(DECODE_STAGES);
            let folds = 4 * head_dim * ((warps * heads).max(heads + 2) + heads);
            rings + folds + 8 * heads * (warps + 2) + 2 * head_dim * heads
        };
        let busy = (DECODE_WARPS * self.chip.multiprocessors / blocks).clamp(1, DECODE_WARPS);
        let fits = |&warps: &usize| warps <= busy && shared_bytes(warps) <= self.chip.shared_bytes;
        // With the most queries and the widest head one warp fits every card.
        let warps = (2..=DECODE_WARPS).rev().find(fits).unwrap_or(1);
        let most = self.chip.multiprocessors / blocks;
        let cut = most >= DECODE_BLOCKS && extent.splits > DECODE_ROUNDS * warps;
        let each = if cut { extent.splits.div_ceil(most).max(warps) } else { extent.splits };
        let apart = extent.splits.div_ceil(each);
        let mut arguments = self.counted(Count::DecodeRows);
        arguments.0.push(self.attention(l));
        let (at, parts, apart_sums) = sums.map_or((0, 0, 0), |s| (activations.sums, s.parts, s.apart));
        let arguments = arguments
            .add(activations.shares)
            .add(activations.partial)
            .add(activations.attended)
            .add(each as u32)
            .add(extent.splits as u32)
            .add(self.words(self.layout.tokens))
            .add(at)
            .add(parts as u32)
            .add(apart_sums as u64);
        let arguments = self.turned(layer, arguments).add(self.pool);
        let blocks = [extent.decode_rows, across, apart];
        let attend = launch("attend_decode", blocks, 32 * warps as u32, arguments);
        let mut all = vec![Launch { shared_bytes: shared_bytes(warps) as u32, ..attend }];
        all.extend((apart > 1).then(|| self.merge_splits(extent)));
        all
    }

    fn merge_splits(&self, extent: Extent) -> Launch {
        let activations = self.activations;
        let arguments = self
            .counted(Count::DecodeRows)
            .add(self.words(self.layout.rows))
            .add(activations.shares)
            .add(activations.partial)
            .add(activations.attended)
            .add(extent.splits as u32);
        launch("merge_splits", [extent.decode_rows, self.shape.heads, 1], 64, arguments)
    }

    /// From the fused projection's sums to attention's output.
    fn attend(&self, extent: Extent, l: usize, layer: &LayerAddresses, sums: Sums, all: &mut Vec<Launch>) {
        let (shape, activations) = (self.shape, self.activations);
        let inside = self.turned_inside(extent);
        if !inside {
            all.push(self.turn_heads(extent.tokens, l, layer, sums));
        }
        if extent.decode_rows > 0 && self.bf16() {
            all.extend(self.decode_bf16(extent, l, layer, inside.then_some(sums)));
        } else if extent.decode_rows > 0 {
            let mut arguments = self.counted(Count::DecodeRows);
            arguments.0.push(self.attention(l));
            let arguments = arguments.add(activations.shares).add(activations.partial);
            let across = shape.kv_heads * (shape.heads / shape.kv_heads).div_ceil(DECODE_QUERIES);
            all.push(launch("attend_decode", [extent.decode_rows, across, extent.splits], 32, arguments));
            all.push(self.merge_splits(extent));
        }
        if extent.tiles > 0 {
            let mut arguments = self.counted(Count::Tiles).add(self.words(self.layout.tiles));
            arguments.0.push(self.attention(l));
            let arguments = arguments.add(activations.attended);
            let blocks = [extent.tiles, shape.kv_heads, 1];
            let shared_bytes = if self.bf16() { self.ring_bytes(ATTENTION_STAGES) as u32 } else { 0 };
            all.push(Launch { shared_bytes, ..launch("attend_prefill", blocks, 128, arguments) });
        }
    }

    /// All layers, then the final norm of the outputs into `normed`.
    pub fn layers(&self, extent: Extent) -> Vec<Launch> {
        let (shape, activations) = (self.shape, self.activations);
        let (tokens, hidden, inner) = (extent.tokens, shape.hidden, shape.heads * shape.head_dim);
        let mut all = Vec::with_capacity(3 + 10 * shape.layers);
        let arguments = self
            .counted(Count::Tokens)
            .add(self.words(self.layout.tokens))
            .add(self.model.embed)
            .add(activations.hidden)
            .add(hidden as u32);
        all.push(launch("embed", [tokens, 1, 1], 256, arguments));
        let product = |x, w, outputs, inputs| self.sum(tokens, Product { x, w, outputs, inputs });
        let mut sums = NOTHING;
        for (l, layer) in self.model.layers.iter().enumerate() {
            all.push(self.norm(Count::Tokens, 0, layer.attn_norm, tokens, sums));
            let (qkv, sums_of_qkv) = product(activations.normed, layer.qkv, shape.qkv_rows(), hidden);
            all.push(qkv);
            self.attend(extent, l, layer, sums_of_qkv, &mut all);
            let (o, sums_of_o) = product(activations.attended, layer.o, hidden, inner);
            all.push(o);
            all.push(self.norm(Count::Tokens, 0, layer.ffn_norm, tokens, sums_of_o));
            self.gate(tokens, layer.gate_up, &mut all);
            let (down, sums_of_down) = product(activations.gated, layer.down, hidden, shape.ffn);
            all.push(down);
            sums = sums_of_down;
        }
        if extent.outputs > 0 {
            let outputs = self.words(self.layout.outputs);
            all.push(self.norm(Count::Outputs, outputs, self.model.norm, extent.outputs, sums));
        }
        all
    }

    /// Draws after `outputs` rows of logits.
    pub fn draw(&self, outputs: usize) -> [Launch; 3] {
        let Activations { logits, survey, drawn, .. } = *self.activations;
        let (draws, vocab) = (self.words(self.layout.draws), self.shape.vocab as u32);
        let looked = [outputs, SURVEYED, 1];
        let counted = || self.counted(Count::Outputs).add(logits);
        [
            launch("survey_logits", looked, 256, counted().add(survey).add(vocab)),
            launch("weigh_logits", looked, 256, counted().add(draws).add(survey).add(vocab)),
            launch(
                "draw_tokens",
                [outputs, 1, 1],
                512,
                counted().add(draws).add(survey).add(drawn).add(vocab),
            ),
        ]
    }
}

/// Copies of whole blocks inside a pool of `blocks` blocks, whose share of each of the `layers` layers is `block_bytes`:
/// `data` has the count, and two words on the pairs.
pub fn copy_blocks(
    data: Address,
    copies: usize,
    pool: Address,
    (blocks, layers): (u32, usize),
    block_bytes: u64,
) -> Launch {
    let words = block_bytes / 4;
    let arguments =
        Arguments(Vec::new()).add(data).add(data + 8).add(pool).add(words).add(u64::from(blocks) * words);
    let across = words.div_ceil(256).min(MOST_BLOCKS) as usize;
    launch("copy_blocks", [across, copies, layers], 256, arguments)
}

/// Looks for elements that are not finite in `count` pieces of tensors, whose records lie at `pieces`.
pub fn find_strays(pieces: Address, count: usize, strays: Address) -> Launch {
    launch("find_strays", [count, 1, 1], 256, Arguments(Vec::new()).add(pieces).add(strays))
}

/// Splits of a sequence of this many positions.
pub fn splits(positions: usize) -> usize {
    positions.div_ceil(SPLIT_TOKENS)
}
