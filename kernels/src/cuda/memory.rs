//! What a card's memory is needed for, summed before anything is allocated.

use std::fmt;

use super::driver::Types;
use super::launches::{SURVEYED, splits};
use super::model::Geometry;
use super::products::sums_room;
use super::step::{Layout, Limits, PREFILL_QUERIES, Room};
use crate::KernelError;
use crate::shape::ModelShape;
use crate::weights::Dtype;

/// One purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What for.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// How they come about.
    pub arithmetic: String,
    /// What to change to need less; empty where nothing can be.
    pub lower: &'static str,
}

/// All purposes, in the order in which memory is taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryPlan {
    /// The purposes.
    pub lines: Vec<Line>,
}

/// Elements of all tensors.
fn parameters(shape: &ModelShape) -> u64 {
    shape.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>() as u64).sum()
}

impl MemoryPlan {
    fn add(&mut self, name: &str, bytes: u64, arithmetic: String, lower: &'static str) {
        self.lines.push(Line { name: name.to_owned(), bytes, arithmetic, lower });
    }

    /// A model's weights, and the angles of its positions.
    pub fn weights(&mut self, name: &str, shape: &ModelShape, element: Dtype) {
        self.copy(name, shape, element);
        let (positions, head_dim) = (shape.max_positions as u64, shape.head_dim as u64);
        let arithmetic = format!("{positions} positions, {head_dim} f32 each");
        self.add(&format!("angles of {name}"), 4 * positions * head_dim, arithmetic, "lower max_positions");
    }

    /// A model's weights alone.
    pub fn copy(&mut self, name: &str, shape: &ModelShape, element: Dtype) {
        let (count, each) = (parameters(shape), Types::plain(element).element_bytes());
        let arithmetic = format!("{count} parameters of {each} bytes");
        self.add(&format!("weights of {name}"), count * each, arithmetic, "take a smaller model, or bf16");
    }

    /// Gradients and the optimizer's state of a model in training: `state_bytes` for each parameter (AdamW with
    /// gradients and two moments in f32: 12; with f32 masters of bf16 weights: 16).
    pub fn optimizer(&mut self, shape: &ModelShape, state_bytes: u64) {
        let count = parameters(shape);
        let arithmetic = format!("{count} parameters, {state_bytes} bytes of gradients and moments each");
        self.add("optimizer", count * state_bytes, arithmetic, "take a smaller model");
    }

    /// What the learner keeps between forward and backward for `tokens` tokens at once: per layer the residual stream
    /// and its norms, q, k, v, what was attended, gate, up and their product; then the logits in f32, twice,
    /// and a bf16 head in f32.
    pub fn learner(&mut self, shape: &ModelShape, element: Dtype, tokens: u64) {
        let (hidden, inner) = (shape.hidden as u64, (shape.heads * shape.head_dim) as u64);
        let layer = 4 * hidden + 2 * shape.qkv_rows() as u64 + inner + 3 * shape.ffn as u64;
        let (layers, vocab, each) =
            (shape.layers as u64, shape.vocab as u64, Types::plain(element).element_bytes());
        let head = if element == Dtype::F32 { 0 } else { 4 * vocab * hidden };
        let bytes = tokens * (layers * layer * each + 8 * vocab) + head;
        let arithmetic = format!(
            "{tokens} tokens of {layers} layers × {layer} elements of {each} bytes + {vocab} logits × 8; {head} bytes of the \
             head in f32"
        );
        self.add("learner's activations", bytes, arithmetic, "lower learner.micro_batch_tokens");
    }

    /// What a step of the engine works in; `library`: products may be left to one.
    pub fn steps(
        &mut self,
        shape: &ModelShape,
        element: Dtype,
        limits: Limits,
        block_tokens: usize,
        library: bool,
    ) {
        let (tokens, each) = (limits.tokens as u64, Types::plain(element).element_bytes());
        let (hidden, inner, ffn) =
            (shape.hidden as u64, (shape.heads * shape.head_dim) as u64, shape.ffn as u64);
        let bf16 = element == Dtype::Bf16;
        let floats = if bf16 && !library { hidden } else { hidden + 2 * ffn };
        let elements = hidden + 2 * inner + ffn;
        let sums = sums_room(shape, limits.tokens, bf16) as u64;
        let arithmetic = format!(
            "{tokens} tokens of {floats} f32 + {elements} elements of {each} bytes, {sums} f32 of products' sums"
        );
        let lower = "lower rollout.engine.max_batch_tokens";
        let bytes = tokens * (4 * floats + each * elements) + 4 * sums;
        self.add("engine's activations", bytes, arithmetic, lower);

        let (rows, vocab) = (limits.rows as u64, shape.vocab as u64);
        let lower = "lower rollout.engine.max_running";
        self.add("logits", 4 * rows * vocab, format!("{rows} rows of {vocab} f32"), lower);
        let (heads, most, head_dim) =
            (shape.heads as u64, splits(shape.max_positions) as u64, shape.head_dim as u64);
        let bytes = 4 * rows * heads * most.next_power_of_two() * (2 + head_dim);
        let arithmetic = format!(
            "{rows} rows × {heads} heads × {} splits × {} f32",
            most.next_power_of_two(),
            2 + head_dim
        );
        self.add("splits of decode attention", bytes, arithmetic, lower);
        let words = step_room(shape, limits, block_tokens);
        let bytes = 4 * Layout::new(words).words as u64 + 16 * (1 + SURVEYED as u64) * rows;
        self.add("data of a step", bytes, format!("{words:?}"), lower);
    }

    /// Blocks of keys and values for models of one geometry.
    pub fn keys_values(&mut self, shape: &ModelShape, types: Types, blocks: u32, block_tokens: u32) {
        let each = block_bytes(shape, types, block_tokens);
        let (layers, kv_heads, head_dim) = (shape.layers, shape.kv_heads, shape.head_dim);
        let arithmetic = format!(
            "{blocks} blocks of {block_tokens} positions × {layers} layers × 2 × {kv_heads} KV heads × {head_dim} elements \
             of {} bytes",
            types.kv_bytes()
        );
        let lower = "lower rollout.engine.kv_blocks";
        self.add("keys and values", u64::from(blocks) * each, arithmetic, lower);
    }

    /// What an engine takes besides weights, for models that share it: the widest of their steps, and a pool of keys and
    /// values for each geometry.
    pub fn engine(
        &mut self,
        shapes: &[&ModelShape],
        types: Types,
        limits: Limits,
        (blocks, block_tokens): (u32, u32),
        library: bool,
    ) {
        let mut widest: Vec<Line> = Vec::new();
        for shape in shapes {
            let mut own = Self::default();
            own.steps(shape, types.element, limits, block_tokens as usize, library);
            if widest.is_empty() {
                widest = own.lines;
                continue;
            }
            for (widest, line) in widest.iter_mut().zip(own.lines).filter(|(a, b)| a.bytes < b.bytes) {
                *widest = line;
            }
        }
        self.lines.extend(widest);
        for (i, shape) in shapes.iter().enumerate() {
            let geometry = Geometry::of(shape, types);
            if !shapes[..i].iter().any(|s| Geometry::of(s, types) == geometry) {
                self.keys_values(shape, types, blocks, block_tokens);
            }
        }
    }

    /// What CUDA's libraries and libtorch's own kernels take once they are used: a guess, never measured.
    pub fn libraries(&mut self) {
        let arithmetic = "a guess: cuBLAS's workspace, loaded kernels".to_owned();
        self.add("libraries", 1 << 30, arithmetic, "");
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }

    /// Refuses a plan that does not fit.
    ///
    /// # Errors
    /// [`KernelError::Memory`] with the arithmetic, and the largest line that can be made smaller.
    pub fn check(&self, free_bytes: u64) -> Result<(), KernelError> {
        if self.total() <= free_bytes {
            return Ok(());
        }
        let lowered = self.lines.iter().filter(|line| !line.lower.is_empty());
        let largest = lowered.max_by_key(|line| line.bytes);
        let lower =
            largest.map_or(String::new(), |line| format!("; most of it is {}: {}", line.name, line.lower));
        Err(KernelError::Memory(format!(
            "{} bytes are needed, {free_bytes} are free{lower}\n{self}",
            self.total()
        )))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{:>14.1} MiB  {}: {}", mebibytes(line.bytes), line.name, line.arithmetic)?;
        }
        write!(f, "{:>14.1} MiB  in all", mebibytes(self.total()))
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes of a block.
pub(super) fn block_bytes(shape: &ModelShape, types: Types, block_tokens: u32) -> u64 {
    let elements = shape.layers * 2 * shape.kv_heads * shape.head_dim;
    elements as u64 * u64::from(block_tokens) * types.kv_bytes()
}

/// Room for the data of any step within the limits.
pub(super) fn step_room(shape: &ModelShape, limits: Limits, block_tokens: usize) -> Room {
    let group = shape.heads / shape.kv_heads;
    Room {
        tokens: limits.tokens,
        rows: limits.rows,
        tiles: (limits.tokens * group).div_ceil(PREFILL_QUERIES) + limits.rows,
        outputs: limits.rows,
        blocks: limits.rows * shape.max_positions.div_ceil(block_tokens),
    }
}
