//! KV storage: blocks of `block_tokens` positions, `[block][layer][key or value][kv head][token][head_dim]`.

use std::marker::PhantomData;

/// Sizes of the KV of one kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvShape {
    fn block_len(&self, block_tokens: usize) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * block_tokens
    }

    /// Bytes of one block.
    pub fn block_bytes(&self, block_tokens: usize) -> u64 {
        (self.block_len(block_tokens) * size_of::<f32>()) as u64
    }
}

/// The blocks of one kind of model.
#[derive(Debug)]
pub struct KvPool {
    data: Vec<f32>,
    shape: KvShape,
    block_tokens: usize,
}

impl KvPool {
    /// `blocks` empty blocks.
    pub fn new(shape: KvShape, blocks: u32, block_tokens: usize) -> Self {
        Self { data: vec![0.0; blocks as usize * shape.block_len(block_tokens)], shape, block_tokens }
    }

    /// Copies a whole block.
    pub fn copy(&mut self, from: u32, to: u32) {
        let n = self.shape.block_len(self.block_tokens);
        self.data.copy_within(from as usize * n..(from as usize + 1) * n, to as usize * n);
    }

    /// A handle through which several threads may fill and read blocks.
    pub fn share(&mut self) -> KvShared<'_> {
        KvShared {
            pointer: self.data.as_mut_ptr(),
            len: self.data.len(),
            shape: self.shape,
            block_tokens: self.block_tokens,
            life: PhantomData,
        }
    }
}

/// See [`KvPool::share`]. Rows of a plan write disjoint blocks, and no row reads what another one writes in the same
/// plan: the backend refuses plans in which two rows share a block that either writes.
#[derive(Clone, Copy)]
pub struct KvShared<'a> {
    pointer: *mut f32,
    len: usize,
    shape: KvShape,
    block_tokens: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: the handle borrows the pool exclusively, and its users keep to the rule above: no location is written by
// one thread and touched by another.
#[expect(unsafe_code, reason = "shared by the threads of one plan")]
unsafe impl Send for KvShared<'_> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "shared by the threads of one plan")]
unsafe impl Sync for KvShared<'_> {}

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Keys.
    Key = 0,
    /// Values.
    Value = 1,
}

impl KvShared<'_> {
    /// Positions of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    fn at(&self, block: u32, layer: usize, half: Half, head: usize) -> usize {
        let s = &self.shape;
        let part = (layer * 2 + half as usize) * s.kv_heads + head;
        block as usize * s.block_len(self.block_tokens) + part * self.block_tokens * s.head_dim
    }

    /// All positions of one block for one head, `[token][head_dim]`.
    #[expect(unsafe_code, reason = "shared by the threads of one plan")]
    pub fn read(&self, block: u32, layer: usize, half: Half, head: usize) -> &[f32] {
        let (at, n) = (self.at(block, layer, half, head), self.block_tokens * self.shape.head_dim);
        assert!(at + n <= self.len, "block {block} is outside of the pool");
        // SAFETY: in bounds by the assertion; nobody else writes a block that this row reads (rule of the type).
        unsafe { std::slice::from_raw_parts(self.pointer.add(at), n) }
    }

    /// Fills one position of one head.
    #[expect(unsafe_code, reason = "shared by the threads of one plan")]
    pub fn write(&self, block: u32, layer: usize, half: Half, head: usize, slot: usize, row: &[f32]) {
        let at = self.at(block, layer, half, head) + slot * self.shape.head_dim;
        assert!(at + row.len() <= self.len && row.len() == self.shape.head_dim && slot < self.block_tokens);
        // SAFETY: in bounds by the assertion; this row alone touches the block (rule of the type).
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.pointer.add(at), row.len()) };
    }
}
