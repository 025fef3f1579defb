//! The launch of each kernel: its blocks, threads and parameters, from sizes and addresses alone.

use super::buckets::SPLIT_TOKENS;
use super::driver::{Address, Argument, Launch, Matmul};
use super::step::{Count, Layout};
use crate::shape::ModelShape;

/// How a product is cut into blocks, as `multiply_f32.cu` and `multiply_bf16.cu` have it.
struct Tiling {
    /// The kernel that gives sums.
    sums: &'static str,
    /// The kernel that gives silu(gate) · up.
    gate: &'static str,
    /// Of a block.
    rows: usize,
    /// Of a block; of `gate` half as many.
    columns: usize,
    threads: u32,
    /// Parts of the inputs that are under way at once, in shared memory of the launch's making.
    stages: usize,
    /// Inputs of such a part.
    depth: usize,
}

const FEW: Tiling = Tiling {
    sums: "multiply_few",
    gate: "gate_few",
    rows: 16,
    columns: 16,
    threads: 32,
    stages: 5,
    depth: 64,
};
const SOME: Tiling = Tiling {
    sums: "multiply_some",
    gate: "gate_some",
    rows: 32,
    columns: 32,
    threads: 64,
    stages: 4,
    depth: 64,
};
const MORE: Tiling = Tiling {
    sums: "multiply_more",
    gate: "gate_more",
    rows: 64,
    columns: 32,
    threads: 64,
    stages: 3,
    depth: 64,
};
const MANY: Tiling = Tiling {
    sums: "multiply_many",
    gate: "gate_many",
    rows: 128,
    columns: 128,
    threads: 256,
    stages: 4,
    depth: 32,
};
/// Of f32; there is no `gate`.
const EXACT: Tiling =
    Tiling { sums: "multiply", gate: "", rows: 64, columns: 64, threads: 256, stages: 0, depth: 0 };

/// Inputs of a segment are a multiple of this many: of any stage.
const DEPTH: usize = 64;

/// Warps that keep a card busy with few rows, four or five a multiprocessor.
const BUSY: usize = 608;

/// Below this many blocks the segments of many rows get blocks of their own.
const IDLE: usize = 48;

/// Fewest inputs of a segment.
const LEAST_SEGMENT: usize = 128;

/// Chunks of keys and values that attention in bf16 has under way, and positions of one.
const ATTENTION_STAGES: usize = 4;
const CHUNK: usize = 32;

/// Parts of a row's logits that are looked at by blocks of their own, as `sampling.cu` has it.
pub(super) const SURVEYED: usize = 32;

impl Tiling {
    fn of(rows: usize, bf16: bool) -> &'static Self {
        if !bf16 {
            return &EXACT;
        }
        [&FEW, &SOME, &MORE].into_iter().find(|tiling| rows <= tiling.rows).unwrap_or(&MANY)
    }

    fn shared_bytes(&self) -> u32 {
        (self.stages * (self.rows + self.columns) * (self.depth + 8) * 2) as u32
    }
}

/// In what order a product's inputs are summed: a matter of the weight's sizes alone, so that a row's bits are the same
/// in any batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segments {
    /// Inputs of one, a multiple of [`DEPTH`].
    inputs: usize,
    /// How many.
    count: usize,
}

impl Segments {
    fn of(outputs: usize, inputs: usize, bf16: bool) -> Self {
        let wanted = if bf16 { BUSY / outputs.div_ceil(FEW.columns) } else { 1 };
        let inputs_each = inputs.div_ceil(wanted.clamp(1, inputs.div_ceil(LEAST_SEGMENT)));
        let each = inputs_each.next_multiple_of(DEPTH);
        Self { inputs: each, count: inputs.div_ceil(each) }
    }

    /// In how many parts the sums of `rows` rows come.
    fn parts(self, rows: usize, outputs: usize, bf16: bool) -> usize {
        let blocks = rows.div_ceil(MANY.rows) * outputs.div_ceil(MANY.columns);
        if bf16 && (rows <= MORE.rows || blocks <= IDLE) { self.count } else { 1 }
    }
}

/// Most sums, over all parts, that products of at most `rows` rows are given out in.
fn most_sums(outputs: usize, inputs: usize, rows: usize, bf16: bool) -> usize {
    let parts = |rows: usize| Segments::of(outputs, inputs, bf16).parts(rows, outputs, bf16);
    // The number of blocks grows with the rows from one border of tiles to the next.
    let borders = (0..rows).step_by(MANY.rows).chain([rows.min(FEW.rows), rows.min(MORE.rows), rows]);
    borders.map(|rows| rows * outputs * parts(rows)).max().unwrap_or(0)
}

/// Floats that the sums of the largest product of a step of `tokens` tokens take.
pub(super) fn sums_room(shape: &ModelShape, tokens: usize, bf16: bool) -> usize {
    let inner = shape.heads * shape.head_dim;
    let products = [(shape.qkv_rows(), shape.hidden), (shape.hidden, inner), (shape.hidden, shape.ffn)];
    products.into_iter().map(|(outputs, inputs)| most_sums(outputs, inputs, tokens, bf16)).max().unwrap_or(0)
}

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
    /// Positions of a block.
    pub block_tokens: u32,
    /// Where the step's data lies.
    pub step: Address,
    /// Its layout.
    pub layout: Layout,
    /// Whether weights are in bf16, not f32.
    pub bf16: bool,
    /// Whether the driver has a library that multiplies.
    pub library: bool,
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

struct Arguments(Vec<Argument>);

impl Arguments {
    fn add(mut self, argument: impl Into<Argument>) -> Self {
        self.0.push(argument.into());
        self
    }
}

fn launch(kernel: &'static str, blocks: [usize; 3], threads: u32, arguments: Arguments) -> Launch {
    Launch {
        kernel,
        blocks: blocks.map(|b| b as u32),
        threads,
        shared_bytes: 0,
        arguments: arguments.0,
        instead: None,
    }
}

/// What a product's sums come in, for whoever adds them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sums {
    parts: usize,
    /// Elements from one part to the next.
    apart: usize,
}

/// None.
const NOTHING: Sums = Sums { parts: 0, apart: 0 };

/// `x · wᵀ`.
#[derive(Debug, Clone, Copy)]
struct Product {
    x: Address,
    w: Address,
    outputs: usize,
    inputs: usize,
}

impl Surroundings<'_> {
    fn words(&self, at: usize) -> Address {
        self.step + 4 * at as u64
    }

    /// Begins a kernel's parameters with the address of its count.
    fn counted(&self, count: Count) -> Arguments {
        Arguments(Vec::new()).add(self.words(self.layout.counts + count as usize))
    }

    /// `Paging` of `paging.cuh`, then the two words after it where there are any.
    fn paging(&self, more: [u32; 2]) -> [u64; 3] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (layers, kv_heads) = (self.shape.layers as u32, self.shape.kv_heads as u32);
        [pair(layers, kv_heads), pair(self.block_tokens, more[0]), u64::from(more[1])]
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

    /// A product of `rows` rows to `y`, in `parts` parts of the segments.
    fn product(
        &self,
        count: Count,
        rows: usize,
        product: Product,
        y: Address,
        segments: Segments,
        parts: usize,
    ) -> Launch {
        let Product { x, w, outputs, inputs } = product;
        let tiling = Tiling::of(rows, self.bf16);
        let mut arguments = self.counted(count).add(x).add(w).add(y).add(outputs as u32).add(inputs as u32);
        if self.bf16 {
            let part = if parts == 1 { segments.inputs * segments.count } else { segments.inputs };
            let apart = (rows * outputs) as u64;
            arguments = arguments.add(segments.inputs as u32).add(part as u32).add(apart);
        }
        let blocks = [outputs.div_ceil(tiling.columns), rows.div_ceil(tiling.rows), parts];
        let whole = Matmul { x, w, y, rows: rows as u32, outputs: outputs as u32, inputs: inputs as u32 };
        Launch {
            shared_bytes: tiling.shared_bytes(),
            instead: self.by_library(rows).then_some(whole),
            ..launch(tiling.sums, blocks, tiling.threads, arguments)
        }
    }

    /// Whether products of so many rows are left to a library: smaller ones are a matter of reading the weights.
    fn by_library(&self, rows: usize) -> bool {
        self.library && self.bf16 && rows > MORE.rows
    }

    /// A product of all tokens to the place of sums, and what it gives them in.
    fn sum(&self, tokens: usize, product: Product) -> (Launch, Sums) {
        let Product { outputs, inputs, .. } = product;
        let segments = Segments::of(outputs, inputs, self.bf16);
        let parts = if self.by_library(tokens) { 1 } else { segments.parts(tokens, outputs, self.bf16) };
        let y = self.activations.sums;
        let launch = self.product(Count::Tokens, tokens, product, y, segments, parts);
        (launch, Sums { parts, apart: tokens * outputs })
    }

    /// silu(gate) · up of all tokens: in bf16 by the product's own kernel; in f32, or after a library's product, by one
    /// after it.
    fn gate(&self, tokens: usize, weight: Address, all: &mut Vec<Launch>) {
        let (ffn, inputs) = (self.shape.ffn, self.shape.hidden);
        let Activations { normed, gate_up, gated, .. } = *self.activations;
        let tiling = Tiling::of(tokens, self.bf16);
        if self.bf16 && !self.by_library(tokens) {
            let arguments = self.counted(Count::Tokens).add(normed).add(weight).add(gated);
            let arguments = arguments.add(ffn as u32).add(inputs as u32);
            let blocks = [ffn.div_ceil(tiling.columns / 2), tokens.div_ceil(tiling.rows), 1];
            let launch = launch(tiling.gate, blocks, tiling.threads, arguments);
            return all.push(Launch { shared_bytes: tiling.shared_bytes(), ..launch });
        }
        let product = Product { x: normed, w: weight, outputs: 2 * ffn, inputs };
        let segments = Segments { inputs: inputs.next_multiple_of(DEPTH), count: 1 };
        all.push(self.product(Count::Tokens, tokens, product, gate_up, segments, 1));
        let arguments = self.counted(Count::Tokens).add(gate_up).add(gated).add(ffn as u32);
        all.push(launch("swiglu", [ffn.div_ceil(256), tokens, 1], 256, arguments));
    }

    fn turn_heads(&self, tokens: usize, l: usize, layer: &LayerAddresses, sums: Sums) -> Launch {
        let shape = self.shape;
        let [a, b, _] = self.paging([0, 0]);
        let arguments = self
            .counted(Count::Tokens)
            .add(self.words(self.layout.tokens))
            .add(self.activations.sums)
            .add(sums.parts as u32)
            .add(sums.apart as u64)
            .add(layer.qkv_bias)
            .add(layer.q_norm)
            .add(layer.k_norm)
            .add(shape.rms_eps as f32)
            .add(self.model.angles)
            .add(1.0 / (shape.head_dim as f32).sqrt())
            .add(self.activations.queries)
            .add(self.pool);
        let mut arguments = arguments;
        arguments.0.push(Argument([a, b, 0, 0, 0, 0, 0]));
        let arguments = arguments.add(l as u32).add(shape.heads as u32);
        let heads = shape.heads + 2 * shape.kv_heads;
        launch("turn_heads", [tokens, heads.div_ceil(TURN_HEADS), 1], 32 * TURN_HEADS as u32, arguments)
    }

    fn attend(&self, extent: Extent, l: usize, all: &mut Vec<Launch>) {
        let (shape, activations) = (self.shape, self.activations);
        let what = self.attention(l);
        let row = 2 * (shape.head_dim.next_multiple_of(16) + 8);
        let shared_bytes = if self.bf16 { (ATTENTION_STAGES * 2 * CHUNK * row) as u32 } else { 0 };
        if extent.decode_rows > 0 {
            let mut arguments = self.counted(Count::DecodeRows);
            arguments.0.push(what);
            let arguments = arguments.add(activations.shares).add(activations.partial);
            let across = shape.kv_heads * (shape.heads / shape.kv_heads).div_ceil(DECODE_QUERIES);
            let blocks = [extent.decode_rows, across, extent.splits];
            all.push(Launch { shared_bytes, ..launch("attend_decode", blocks, 32, arguments) });
            let arguments = self
                .counted(Count::DecodeRows)
                .add(self.words(self.layout.rows))
                .add(activations.shares)
                .add(activations.partial)
                .add(activations.attended)
                .add(extent.splits as u32);
            all.push(launch("merge_splits", [extent.decode_rows, shape.heads, 1], 64, arguments));
        }
        if extent.tiles > 0 {
            let mut arguments = self.counted(Count::Tiles).add(self.words(self.layout.tiles));
            arguments.0.push(what);
            let arguments = arguments.add(activations.attended);
            let blocks = [extent.tiles, shape.kv_heads, 1];
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
            all.push(self.turn_heads(tokens, l, layer, sums_of_qkv));
            self.attend(extent, l, &mut all);
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

    /// Logits of `outputs` normed rows.
    pub fn head(&self, outputs: usize) -> Launch {
        let (vocab, hidden) = (self.shape.vocab, self.shape.hidden);
        let product =
            Product { x: self.activations.normed, w: self.model.head, outputs: vocab, inputs: hidden };
        let whole = Segments { inputs: hidden.next_multiple_of(DEPTH), count: 1 };
        self.product(Count::Outputs, outputs, product, self.activations.logits, whole, 1)
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

/// Copies of whole blocks inside a pool: `data` has the count, and two words on the pairs.
pub fn copy_blocks(data: Address, copies: usize, pool: Address, block_bytes: u64) -> Launch {
    let words = block_bytes / 4;
    let arguments = Arguments(Vec::new()).add(data).add(data + 8).add(pool).add(words);
    launch("copy_blocks", [words.div_ceil(256).min(MOST_BLOCKS) as usize, copies, 1], 256, arguments)
}

/// Looks for elements of a tensor that are not finite.
pub fn find_strays(elements: Address, count: u64, stray: Address) -> Launch {
    let arguments = Arguments(Vec::new()).add(elements).add(count).add(stray);
    launch("find_strays", [count.div_ceil(256).min(MOST_BLOCKS) as usize, 1, 1], 256, arguments)
}

/// Splits of a sequence of this many positions.
pub fn splits(positions: usize) -> usize {
    positions.div_ceil(SPLIT_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_all_inputs_and_few_rows_keep_a_card_busy() {
        for (outputs, inputs) in
            [(1152, 896), (896, 896), (896, 4864), (1536, 8960), (2048, 1536), (64, 33), (7, 1)]
        {
            let segments = Segments::of(outputs, inputs, true);
            assert!(
                segments.inputs.is_multiple_of(DEPTH) && segments.inputs * segments.count >= inputs,
                "{segments:?}"
            );
            assert!(segments.inputs * (segments.count - 1) < inputs, "{segments:?}");
            let warps = outputs.div_ceil(FEW.columns) * segments.count;
            assert!(
                inputs < 4 * LEAST_SEGMENT || (BUSY / 2..=BUSY).contains(&warps),
                "{outputs} {inputs}: {warps}"
            );
            assert_eq!(segments.parts(1, outputs, true), segments.count);
            assert_eq!(segments.parts(60_000, 10_000, true), 1);
            assert_eq!(Segments::of(outputs, inputs, false).count, 1);
        }
    }

    #[test]
    fn there_is_room_for_the_sums_of_any_batch() {
        for (outputs, inputs) in [(1152, 896), (896, 4864), (1536, 8960), (64, 64)] {
            let segments = Segments::of(outputs, inputs, true);
            for most in [1, 15, 16, 17, 100, 129, 3000] {
                let room = most_sums(outputs, inputs, most, true);
                for rows in 1..=most {
                    let sums = rows * outputs * segments.parts(rows, outputs, true);
                    assert!(sums <= room, "{rows} of {most}: {sums} {room}");
                }
            }
        }
    }
}
