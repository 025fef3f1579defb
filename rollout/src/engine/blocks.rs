//! KV blocks: who holds them, and which can be used again.
//!
//! A full block is known by (weight set, version, what came before it, its tokens). Keys are compared whole, so two
//! prompts share a block exactly when everything up to its end is equal. A block in use is never written again once
//! it is full, so sharing needs no copies. Where two prompts part inside of a block, what they have in common is copied
//! from a block that has it.

use std::collections::{BTreeMap, HashMap};

use parl_kernels::backend::{BlockId, SetId};

/// Names a full block's content; unique for ever, unlike the number of the block that holds it.
pub type ContentId = u64;

/// Blocks that are looked at for what they begin with, the newest first: after a prompt that all have, there are many.
const LOOKED_AT: usize = 32;

/// What a sequence's first block comes after.
pub const ROOT: ContentId = 0;

/// What makes a block this one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// What a block must come after.
    pub place: Place,
    /// Its tokens.
    pub tokens: Box<[u32]>,
}

/// Where a block can stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Whose weights fill it.
    pub set: SetId,
    /// Their version.
    pub version: u64,
    /// The content before it.
    pub parent: ContentId,
}

#[derive(Debug, Clone, Default)]
struct Block {
    holders: u32,
    /// Set while the block can be found again; of one that is not full, the tokens that it begins with.
    key: Option<BlockKey>,
    /// When it was last let go of, if nobody holds it.
    idle_since: Option<u64>,
}

/// All blocks of a backend.
#[derive(Debug)]
pub struct Blocks {
    all: Vec<Block>,
    free: Vec<BlockId>,
    /// Full blocks.
    known: HashMap<BlockKey, (BlockId, ContentId)>,
    /// Blocks with a key, full or not, by where they stand.
    standing: HashMap<Place, Vec<BlockId>>,
    /// Blocks with a key that nobody holds, the longest unused first.
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
            standing: HashMap::new(),
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
            self.all[id as usize].idle_since = None;
            self.unname(id);
            Some(id)
        })?;
        self.all[id as usize].holders = 1;
        Some(id)
    }

    /// The full block with this content, held once more.
    pub fn find(&mut self, key: &BlockKey) -> Option<(BlockId, ContentId)> {
        let (id, content) = *self.known.get(key)?;
        let block = &mut self.all[id as usize];
        block.holders += 1;
        if let Some(since) = block.idle_since.take() {
            self.idle.remove(&since);
        }
        Some((id, content))
    }

    /// Of the newest blocks that stand at `place`, one that begins with most of `tokens`, and with how many. Nobody holds
    /// it for that: it is there until a pass writes it.
    pub fn begins_with(&self, place: Place, tokens: &[u32]) -> Option<(BlockId, usize)> {
        let mut best: Option<(BlockId, usize)> = None;
        for &id in self.standing.get(&place)?.iter().rev().take(LOOKED_AT) {
            let own = self.all[id as usize].key.as_ref().map_or(&[][..], |key| &key.tokens);
            let alike = own.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            if alike > best.map_or(0, |(_, most)| most) {
                best = Some((id, alike));
            }
            if alike == tokens.len() {
                break;
            }
        }
        best
    }

    /// Makes a full block findable; returns the content's name. Where another block has the same content already,
    /// that one stays the one that is found.
    pub fn publish(&mut self, id: BlockId, key: BlockKey) -> ContentId {
        if let Some((_, content)) = self.known.get(&key) {
            return *content;
        }
        let content = self.next_content;
        self.next_content += 1;
        self.name(id, key.clone());
        self.known.insert(key, (id, content));
        content
    }

    /// Says what a block that somebody holds begins with, in place of what was said of it before. More may be written
    /// after that, nothing before.
    pub fn name(&mut self, id: BlockId, key: BlockKey) {
        self.unname(id);
        self.standing.entry(key.place).or_default().push(id);
        self.all[id as usize].key = Some(key);
    }

    fn unname(&mut self, id: BlockId) {
        let Some(key) = self.all[id as usize].key.take() else { return };
        if let Some(standing) = self.standing.get_mut(&key.place) {
            standing.retain(|other| *other != id);
            if standing.is_empty() {
                self.standing.remove(&key.place);
            }
        }
        if self.known.get(&key).is_some_and(|(known, _)| *known == id) {
            self.known.remove(&key);
        }
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
        self.known.retain(|key, _| key.place.set != set);
        let mut gone: Vec<BlockId> =
            self.standing.extract_if(|place, _| place.set == set).flat_map(|(_, ids)| ids).collect();
        gone.sort_unstable();
        for id in gone {
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
