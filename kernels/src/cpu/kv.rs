//! Where keys and values lie: pools of blocks, one pool for all weight sets of one geometry.
//!
//! Within a block, layer and KV head, keys lie with positions innermost (a vector holds one element of many
//! positions: scores need no sums across lanes) and values with the head innermost.

use super::buffer::{Aligned, Shared};
use crate::backend::BlockId;
use crate::shape::ModelShape;

/// Widest vector, floats; positions and heads are padded to it.
const VECTOR: usize = 16;

/// Sizes that two weight sets must share to share a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Geometry {
    /// The geometry of a model.
    pub(crate) fn of(shape: &ModelShape) -> Self {
        Self { layers: shape.layers, kv_heads: shape.kv_heads, head_dim: shape.head_dim }
    }
}

/// Offsets inside a pool, in floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Positions in a block.
    pub(crate) block_tokens: usize,
    /// The same, padded: the distance between two elements of a key.
    pub(crate) slots: usize,
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// The same, padded: the distance between two positions of values.
    pub(crate) head_padded: usize,
    kv_heads: usize,
    head_floats: usize,
    block_floats: usize,
}

impl Layout {
    /// Blocks of `block_tokens` positions for `geometry`.
    pub(crate) fn new(geometry: Geometry, block_tokens: usize) -> Self {
        let Geometry { layers, kv_heads, head_dim } = geometry;
        let slots = block_tokens.next_multiple_of(VECTOR);
        let head_padded = head_dim.next_multiple_of(VECTOR);
        let head_floats = head_dim * slots + block_tokens * head_padded;
        let block_floats = layers * kv_heads * head_floats;
        Self { block_tokens, slots, head_dim, head_padded, kv_heads, head_floats, block_floats }
    }

    /// Floats in a block.
    pub(crate) fn block_floats(&self) -> usize {
        self.block_floats
    }

    /// Where the keys of `(block, layer, head)` begin.
    #[inline]
    pub(crate) fn keys(&self, block: BlockId, layer: usize, head: usize) -> usize {
        block as usize * self.block_floats + (layer * self.kv_heads + head) * self.head_floats
    }

    /// Where the values of `(block, layer, head)` begin.
    #[inline]
    pub(crate) fn values(&self, block: BlockId, layer: usize, head: usize) -> usize {
        self.keys(block, layer, head) + self.head_dim * self.slots
    }
}

/// All blocks of one geometry.
pub(crate) struct Pool {
    /// Whose.
    pub(crate) geometry: Geometry,
    /// Offsets.
    pub(crate) layout: Layout,
    memory: Aligned<f32>,
}

impl Pool {
    /// `blocks` empty blocks; the system gives their memory as they are written.
    pub(crate) fn new(geometry: Geometry, blocks: usize, block_tokens: usize) -> Self {
        let layout = Layout::new(geometry, block_tokens);
        Self { geometry, layout, memory: Aligned::zeroed(blocks * layout.block_floats()) }
    }

    /// Copies a whole block.
    pub(crate) fn copy(&mut self, from: BlockId, to: BlockId) {
        let size = self.layout.block_floats();
        let from = from as usize * size;
        self.memory.copy_within(from..from + size, to as usize * size);
    }

    /// The memory, for a pass whose rows write disjoint blocks.
    pub(crate) fn shared(&mut self) -> Kv {
        Kv { memory: Shared(self.memory.as_mut_ptr()), layout: self.layout }
    }
}

/// A pool's memory during one pass: a block is either written by one row or only read.
#[derive(Clone, Copy)]
pub(crate) struct Kv {
    /// First float of the pool.
    pub(crate) memory: Shared,
    /// Offsets.
    pub(crate) layout: Layout,
}

impl Kv {
    /// Writes one position's keys and values of one layer: `k` and `v` hold all KV heads.
    ///
    /// # Safety
    /// `block` is in the pool and `slot` in the block, and no other thread uses the block meanwhile.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn write(&self, block: BlockId, slot: usize, layer: usize, k: &[f32], v: &[f32]) {
        let layout = &self.layout;
        let heads = k.chunks_exact(layout.head_dim).zip(v.chunks_exact(layout.head_dim));
        for (head, (k, v)) in heads.enumerate() {
            // SAFETY: the offsets stay inside the block's part for this layer and head.
            unsafe {
                let keys = self.memory.get().add(layout.keys(block, layer, head) + slot);
                for (i, &x) in k.iter().enumerate() {
                    *keys.add(i * layout.slots) = x;
                }
                let values =
                    self.memory.get().add(layout.values(block, layer, head) + slot * layout.head_padded);
                std::ptr::copy_nonoverlapping(v.as_ptr(), values, v.len());
            }
        }
    }
}
