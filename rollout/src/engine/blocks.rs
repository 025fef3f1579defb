//! KV blocks: who holds them, and which full ones can be used again.
//!
//! A full block is known by (weight set, version, the block before it, its tokens). Keys are compared whole, so two
//! prompts share a block exactly when everything up to its end is equal. A block in use is never written again once
//! it is full, so sharing needs no copies.

use std::collections::{BTreeMap, HashMap};

use parl_kernels::backend::{BlockId, SetId};

/// Names a full block's content; unique for ever, unlike the number of the block that holds it.
pub type ContentId = u64;

/// What a sequence's first block comes after.
pub const ROOT: ContentId = 0;

/// What makes a full block this one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Whose weights filled it.
    pub set: SetId,
    /// Their version.
    pub version: u64,
    /// The content before it.
    pub parent: ContentId,
    /// Its tokens.
    pub tokens: Box<[u32]>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    /// Set while the block can be found again.
    key: Option<BlockKey>,
    /// When it was last let go of, if nobody holds it.
    idle_since: Option<u64>,
}

/// All blocks of a backend.
#[derive(Debug)]
pub struct Blocks {
    all: Vec<Block>,
    free: Vec<BlockId>,
    known: HashMap<BlockKey, (BlockId, ContentId)>,
    /// Known blocks that nobody holds, the longest unused first.
    idle: BTreeMap<u64, BlockId>,
    clock: u64,
    next_content: ContentId,
}

impl Blocks {
    /// `count` free blocks.
    pub fn new(count: u32) -> Self {
        Self {
            all: vec![Block::default(); count as usize],
            free: (0..count).rev().collect(),
            known: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            next_content: ROOT + 1,
        }
    }

    /// Blocks that can be taken now.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes a block for writing; forgets the longest unused content if it must.
    pub fn take(&mut self) -> Option<BlockId> {
        let id = self.free.pop().or_else(|| {
            let (_, id) = self.idle.pop_first()?;
            let block = &mut self.all[id as usize];
            block.idle_since = None;
            if let Some(key) = block.key.take() {
                self.known.remove(&key);
            }
            Some(id)
        })?;
        self.all[id as usize].holders = 1;
        Some(id)
    }

    /// The block with this content, held once more.
    pub fn find(&mut self, key: &BlockKey) -> Option<(BlockId, ContentId)> {
        let (id, content) = *self.known.get(key)?;
        let block = &mut self.all[id as usize];
        block.holders += 1;
        if let Some(since) = block.idle_since.take() {
            self.idle.remove(&since);
        }
        Some((id, content))
    }

    /// Makes a full block findable; returns the content's name. Where another block has the same content already,
    /// that one stays the one that is found.
    pub fn publish(&mut self, id: BlockId, key: BlockKey) -> ContentId {
        if let Some((_, content)) = self.known.get(&key) {
            return *content;
        }
        let content = self.next_content;
        self.next_content += 1;
        self.all[id as usize].key = Some(key.clone());
        self.known.insert(key, (id, content));
        content
    }

    /// Lets go of a sequence's blocks, the last first, so that what others may share is forgotten last.
    pub fn release(&mut self, ids: &[BlockId]) {
        for id in ids.iter().rev() {
            let block = &mut self.all[*id as usize];
            block.holders -= 1;
            if block.holders > 0 {
                continue;
            }
            if block.key.is_some() {
                self.clock += 1;
                block.idle_since = Some(self.clock);
                self.idle.insert(self.clock, *id);
            } else {
                self.free.push(*id);
            }
        }
    }

    /// Forgets everything that `set` filled; blocks in use stay with their holders.
    pub fn forget(&mut self, set: SetId) {
        let gone: Vec<BlockKey> = self.known.keys().filter(|k| k.set == set).cloned().collect();
        for key in gone {
            let Some((id, _)) = self.known.remove(&key) else { continue };
            let block = &mut self.all[id as usize];
            block.key = None;
            if let Some(since) = block.idle_since.take() {
                self.idle.remove(&since);
                self.free.push(id);
            }
        }
    }

    /// Checks the books against who says to hold which blocks.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check(&self, held: impl Iterator<Item = BlockId>) -> Result<(), String> {
        let mut counts = vec![0u32; self.all.len()];
        held.for_each(|id| counts[id as usize] += 1);
        for (id, (block, count)) in self.all.iter().zip(&counts).enumerate() {
            if block.holders != *count {
                return Err(format!("block {id} is held {count} times, the books say {}", block.holders));
            }
        }
        let used = counts.iter().filter(|c| **c > 0).count();
        let sum = used + self.free.len() + self.idle.len();
        if sum != self.all.len() {
            return Err(format!(
                "{used} held + {} free + {} idle are not {}",
                self.free.len(),
                self.idle.len(),
                self.all.len()
            ));
        }
        Ok(())
    }
}
