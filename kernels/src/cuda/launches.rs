//! The launch of each kernel: its blocks, threads and parameters, from sizes and addresses alone.

use super::buckets::SPLIT_TOKENS;
use super::driver::{Address, Argument, Launch};
use super::step::{Count, Layout};
use crate::shape::ModelShape;

/// Side of a product's tile, as `multiply_f32.cu` and `multiply_bf16.cu` have it.
const TILE: usize = 64;

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
    /// f32, `[tokens, qkv rows]`.
    pub qkv: Address,
    /// `[tokens, heads · head_dim]`.
    pub queries: Address,
    /// `[tokens, heads · head_dim]`.
    pub attended: Address,
    /// f32, `[tokens, 2 · ffn]`.
    pub gate_up: Address,
    /// `[tokens, ffn]`.
    pub gated: Address,
    /// f32, `[outputs, vocab]`.
    pub logits: Address,
    /// Softmax states of decode attention, `[rows, heads, splits]` pairs of f32.
    pub shares: Address,
    /// Its sums, f32, `[rows, heads, splits, head_dim]`.
    pub partial: Address,
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
    Launch { kernel, blocks: blocks.map(|b| b as u32), threads, arguments: arguments.0 }
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

    fn norm(&self, count: Count, rows: Address, weight: Address, blocks: usize) -> Launch {
        let arguments = self
            .counted(count)
            .add(rows)
            .add(self.activations.hidden)
            .add(weight)
            .add(self.activations.normed)
            .add(self.shape.hidden as u32)
            .add(self.shape.rms_eps as f32);
        launch("rms_norm", [blocks, 1, 1], 256, arguments)
    }

    fn multiply(&self, count: Count, rows: usize, product: Product) -> Launch {
        let arguments = self
            .counted(count)
            .add(product.x)
            .add(product.w)
            .add(product.bias)
            .add(product.y)
            .add(product.outputs as u32)
            .add(product.inputs as u32)
            .add(u32::from(product.add));
        let threads = if product.bf16 { 128 } else { 256 };
        launch("multiply", [product.outputs.div_ceil(TILE), rows.div_ceil(TILE), 1], threads, arguments)
    }

    fn turn_heads(&self, tokens: usize, l: usize, layer: &LayerAddresses) -> Launch {
        let shape = self.shape;
        let [a, b, _] = self.paging([0, 0]);
        let arguments = self
            .counted(Count::Tokens)
            .add(self.words(self.layout.tokens))
            .add(self.activations.qkv)
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
        if extent.decode_rows > 0 {
            let mut arguments = self.counted(Count::DecodeRows);
            arguments.0.push(what);
            let arguments = arguments.add(activations.shares).add(activations.partial);
            let across = shape.kv_heads * (shape.heads / shape.kv_heads).div_ceil(DECODE_QUERIES);
            all.push(launch("attend_decode", [extent.decode_rows, across, extent.splits], 32, arguments));
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
            all.push(launch("attend_prefill", [extent.tiles, shape.kv_heads, 1], 128, arguments));
        }
    }

    /// All layers, then the final norm of the outputs into `normed`.
    pub fn layers(&self, extent: Extent, bf16: bool) -> Vec<Launch> {
        let (shape, activations) = (self.shape, self.activations);
        let (tokens, inner) = (extent.tokens, shape.heads * shape.head_dim);
        let mut all = Vec::with_capacity(3 + 9 * shape.layers);
        let arguments = self
            .counted(Count::Tokens)
            .add(self.words(self.layout.tokens))
            .add(self.model.embed)
            .add(activations.hidden)
            .add(shape.hidden as u32);
        all.push(launch("embed", [tokens, 1, 1], 256, arguments));
        let multiply = |product| self.multiply(Count::Tokens, tokens, product);
        let product =
            |x, w, y, outputs, inputs, add| Product { x, w, bias: 0, y, outputs, inputs, add, bf16 };
        for (l, layer) in self.model.layers.iter().enumerate() {
            all.push(self.norm(Count::Tokens, 0, layer.attn_norm, tokens));
            let qkv = product(
                activations.normed,
                layer.qkv,
                activations.qkv,
                shape.qkv_rows(),
                shape.hidden,
                false,
            );
            all.push(multiply(Product { bias: layer.qkv_bias, ..qkv }));
            all.push(self.turn_heads(tokens, l, layer));
            self.attend(extent, l, &mut all);
            all.push(multiply(product(
                activations.attended,
                layer.o,
                activations.hidden,
                shape.hidden,
                inner,
                true,
            )));
            all.push(self.norm(Count::Tokens, 0, layer.ffn_norm, tokens));
            let (gate_up, gated) = (activations.gate_up, activations.gated);
            all.push(multiply(product(
                activations.normed,
                layer.gate_up,
                gate_up,
                2 * shape.ffn,
                shape.hidden,
                false,
            )));
            let arguments = self.counted(Count::Tokens).add(gate_up).add(gated).add(shape.ffn as u32);
            all.push(launch("swiglu", [shape.ffn.div_ceil(256), tokens, 1], 256, arguments));
            all.push(multiply(product(gated, layer.down, activations.hidden, shape.hidden, shape.ffn, true)));
        }
        if extent.outputs > 0 {
            let outputs = self.words(self.layout.outputs);
            all.push(self.norm(Count::Outputs, outputs, self.model.norm, extent.outputs));
        }
        all
    }

    /// Logits of `outputs` normed rows.
    pub fn head(&self, outputs: usize, bf16: bool) -> Launch {
        let product = Product {
            x: self.activations.normed,
            w: self.model.head,
            bias: 0,
            y: self.activations.logits,
            outputs: self.shape.vocab,
            inputs: self.shape.hidden,
            add: false,
            bf16,
        };
        self.multiply(Count::Outputs, outputs, product)
    }

    /// Draws after `outputs` rows of logits.
    pub fn draw(&self, outputs: usize) -> Launch {
        let arguments = self
            .counted(Count::Outputs)
            .add(self.activations.logits)
            .add(self.words(self.layout.draws))
            .add(self.activations.drawn)
            .add(self.shape.vocab as u32);
        launch("draw_tokens", [outputs, 1, 1], 512, arguments)
    }
}

/// `y (+)= x · wᵀ (+ bias)`.
#[derive(Debug, Clone, Copy)]
struct Product {
    x: Address,
    w: Address,
    bias: Address,
    y: Address,
    outputs: usize,
    inputs: usize,
    add: bool,
    bf16: bool,
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
