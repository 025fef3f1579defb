//! Which tokens of which sequences the next pass computes. Pure: no backend, no clock.
//!
//! Sequences are served in the order of their submission. When blocks run out, the newest running one gives its own
//! back and starts over later; by batch invariance it will draw the same tokens.

use std::collections::{HashMap, HashSet, VecDeque};

use parl_kernels::backend::{BlockId, Draw, Output, Plan, PlanGroup, PlanRow, SetId};

use super::EngineConfig;
use super::blocks::{BlockKey, Blocks, Place};
use super::sequence::{Begun, Completion, Finish, Request, RequestId, Sequence};

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Tokens that passes computed.
    pub computed_tokens: u64,
    /// Tokens drawn.
    pub drawn_tokens: u64,
    /// Context tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Sequences that had to give their blocks back.
    pub preemptions: u64,
}

/// A row of the plan under way: which sequence, how many tokens.
#[derive(Debug, Clone, Copy)]
struct Fed {
    id: RequestId,
    tokens: usize,
}

#[derive(Debug)]
pub(super) struct Scheduler {
    config: EngineConfig,
    blocks: Blocks,
    sequences: HashMap<RequestId, Sequence>,
    /// In the order of their submission.
    running: Vec<RequestId>,
    waiting: VecDeque<RequestId>,
    versions: HashMap<SetId, u64>,
    /// Parallel to the groups and rows of the plan.
    fed: Vec<Vec<Fed>>,
    /// Of the plan.
    copies: Vec<(BlockId, BlockId)>,
    pub stats: Stats,
    pub tick: u64,
}

impl Scheduler {
    pub fn new(config: EngineConfig) -> Self {
        Self {
            blocks: Blocks::new(config.kv_blocks),
            config,
            sequences: HashMap::new(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            versions: HashMap::new(),
            fed: Vec::new(),
            copies: Vec::new(),
            stats: Stats::default(),
            tick: 0,
        }
    }

    /// A new version of a set: what it filled is forgotten, and its live sequences compute their KV anew.
    pub fn set_version(&mut self, set: SetId, version: u64) {
        self.versions.insert(set, version);
        self.blocks.forget(set);
        let live: Vec<RequestId> =
            self.running.iter().copied().filter(|id| self.sequences[id].request.set == set).collect();
        for id in live.into_iter().rev() {
            self.give_back(id);
        }
    }

    /// Puts all that runs back into the queue, in its order, and drops every cached prefix.
    pub fn park(&mut self) {
        for id in self.running.clone().into_iter().rev() {
            self.give_back(id);
        }
        for set in self.versions.keys() {
            self.blocks.forget(*set);
        }
    }

    /// All that is under way, in the order in which it is served.
    pub fn under_way(&self) -> Vec<(RequestId, Begun)> {
        let begun = |id: &RequestId| Some((*id, self.sequences.get(id)?.begun(self.tick)));
        self.running.iter().chain(&self.waiting).filter_map(begun).collect()
    }

    pub fn version(&self, set: SetId) -> Option<u64> {
        self.versions.get(&set).copied()
    }

    pub fn submit(&mut self, request: Request) {
        let id = request.id;
        self.sequences.insert(id, Sequence::new(request, self.tick));
        self.waiting.push_back(id);
    }

    pub fn holds(&self, id: RequestId) -> bool {
        self.sequences.contains_key(&id)
    }

    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    pub fn cancel(&mut self, id: RequestId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.blocks.release(&sequence.blocks);
            self.running.retain(|other| *other != id);
            self.waiting.retain(|other| *other != id);
        }
    }

    /// Takes a running sequence's blocks and puts it at the head of the queue.
    fn give_back(&mut self, id: RequestId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.blocks.release(&std::mem::take(&mut sequence.blocks));
            sequence.contents.clear();
            sequence.computed = 0;
        }
        self.running.retain(|other| *other != id);
        self.waiting.push_front(id);
        self.stats.preemptions += 1;
    }

    /// Ends what is out of time.
    pub fn expire(&mut self) -> Vec<Completion> {
        let late =
            |s: &Sequence| s.request.deadline_ticks > 0 && s.age(self.tick) >= s.request.deadline_ticks;
        let mut ids: Vec<RequestId> =
            self.sequences.values().filter(|s| late(s)).map(|s| s.request.id).collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| self.complete(id, Finish::Deadline)).collect()
    }

    fn complete(&mut self, id: RequestId, finish: Finish) -> Option<Completion> {
        self.name_last(id);
        let sequence = self.sequences.remove(&id)?;
        self.blocks.release(&sequence.blocks);
        self.running.retain(|other| *other != id);
        self.waiting.retain(|other| *other != id);
        Some(sequence.complete(finish, self.tick))
    }

    /// The next pass.
    pub fn plan(&mut self) -> Plan {
        self.tick += 1;
        let mut budget = self.config.max_batch_tokens as usize;
        let mut rows: Vec<(RequestId, usize)> = Vec::new();
        for id in self.running.clone() {
            // A sequence before this one may have taken this one's place.
            if budget == 0 || !self.running.contains(&id) {
                continue;
            }
            let sequence = &self.sequences[&id];
            let tokens = (sequence.tokens.len() - sequence.computed).min(budget);
            if self.make_room(id, tokens, true) {
                budget -= tokens;
                rows.push((id, tokens));
            }
        }
        rows.retain(|(id, _)| self.running.contains(id));
        self.admit(&mut budget, &mut rows);
        self.group(&rows)
    }

    /// Blocks for `tokens` more positions of `id`; newer sequences lose theirs when `force`.
    fn make_room(&mut self, id: RequestId, tokens: usize, force: bool) -> bool {
        let per_block = self.config.block_tokens as usize;
        loop {
            let sequence = &self.sequences[&id];
            let needed =
                (sequence.computed + tokens).div_ceil(per_block).saturating_sub(sequence.blocks.len());
            if needed <= self.blocks.available() {
                let taken: Vec<_> = (0..needed).map_while(|_| self.blocks.take()).collect();
                if let Some(sequence) = self.sequences.get_mut(&id) {
                    sequence.blocks.extend(taken);
                }
                return true;
            }
            match self.running.last().copied() {
                Some(newest) if force => {
                    self.give_back(newest);
                    if newest == id {
                        return false;
                    }
                }
                _ => return false,
            }
        }
    }

    fn admit(&mut self, budget: &mut usize, rows: &mut Vec<(RequestId, usize)>) {
        // First blocks that some row of this pass will fill: who needs the same ones waits a tick and finds them.
        let mut in_flight: HashSet<BlockKey> = HashSet::new();
        for (id, _) in rows.iter() {
            in_flight.extend(self.next_key(*id));
        }
        let mut put_off = VecDeque::new();
        while *budget > 0 && self.running.len() < self.config.max_running as usize {
            let Some(id) = self.waiting.pop_front() else { break };
            self.match_prefix(id);
            let key = self.next_key(id);
            if key.as_ref().is_some_and(|key| in_flight.contains(key)) {
                self.drop_match(id);
                put_off.push_back(id);
                continue;
            }
            let common = self.match_beginning(id);
            let sequence = &self.sequences[&id];
            let tokens = (sequence.tokens.len() - sequence.computed).min(*budget);
            if !self.make_room(id, tokens, false) {
                self.drop_match(id);
                self.waiting.push_front(id);
                break;
            }
            if let Some(from) = common {
                let sequence = &self.sequences[&id];
                let to = sequence.blocks[sequence.contents.len()];
                // Copies are made before anything is written, in their order. Room for it may have been that very block.
                self.copies.extend((from != to).then_some((from, to)));
            }
            in_flight.extend(key);
            let tick = self.tick;
            if let Some(sequence) = self.sequences.get_mut(&id) {
                self.stats.cached_tokens += sequence.computed as u64;
                if sequence.first_tick.is_none() {
                    sequence.first_tick = Some(tick);
                    sequence.cached_tokens = sequence.computed as u32;
                }
            }
            *budget -= tokens;
            rows.push((id, tokens));
            self.running.push(id);
        }
        while let Some(id) = put_off.pop_back() {
            self.waiting.push_front(id);
        }
    }

    /// The key of the first full block that `id` has yet to compute.
    fn next_key(&self, id: RequestId) -> Option<BlockKey> {
        let sequence = self.sequences.get(&id)?;
        let per_block = self.config.block_tokens as usize;
        let at = sequence.contents.len() * per_block;
        let tokens = sequence.tokens.get(at..at + per_block)?;
        Some(BlockKey { place: self.next_place(sequence)?, tokens: tokens.into() })
    }

    /// Where the first block stands that is not published.
    fn next_place(&self, sequence: &Sequence) -> Option<Place> {
        let set = sequence.request.set;
        Some(Place { set, version: self.versions.get(&set).copied()?, parent: sequence.parent() })
    }

    /// Takes hold of the known blocks at the front of a waiting sequence. The last token is always computed, since
    /// the next one is drawn from it.
    fn match_prefix(&mut self, id: RequestId) {
        let per_block = self.config.block_tokens as usize;
        while let Some(key) = self.next_key(id) {
            let Some(sequence) = self.sequences.get_mut(&id) else { return };
            if (sequence.contents.len() + 1) * per_block >= sequence.tokens.len() {
                return;
            }
            let Some((block, content)) = self.blocks.find(&key) else { return };
            sequence.blocks.push(block);
            sequence.contents.push(content);
            sequence.computed += per_block;
        }
    }

    /// Counts what a waiting sequence goes on with after its known blocks, where a block begins alike, as computed; the
    /// last token never. Gives that block.
    fn match_beginning(&mut self, id: RequestId) -> Option<BlockId> {
        let sequence = self.sequences.get(&id)?;
        let rest = &sequence.tokens[sequence.computed..sequence.tokens.len() - 1];
        let rest = &rest[..rest.len().min(self.config.block_tokens as usize)];
        let (from, alike) = self.blocks.begins_with(self.next_place(sequence)?, rest)?;
        self.sequences.get_mut(&id)?.computed += alike;
        Some(from)
    }

    /// Lets others find what is computed of a sequence's last block, which is not full.
    fn name_last(&mut self, id: RequestId) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let full = sequence.contents.len();
        let computed = &sequence.tokens[full * self.config.block_tokens as usize..sequence.computed];
        if let (false, Some(place)) = (computed.is_empty(), self.next_place(sequence)) {
            self.blocks.name(sequence.blocks[full], BlockKey { place, tokens: computed.into() });
        }
    }

    fn drop_match(&mut self, id: RequestId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.blocks.release(&std::mem::take(&mut sequence.blocks));
            sequence.contents.clear();
            sequence.computed = 0;
        }
    }

    fn group(&mut self, rows: &[(RequestId, usize)]) -> Plan {
        let mut groups: Vec<PlanGroup> = Vec::new();
        self.fed.clear();
        for (id, tokens) in rows {
            let sequence = &self.sequences[id];
            let end = sequence.computed + tokens;
            let last = end == sequence.tokens.len();
            let draw =
                Draw { sampling: sequence.request.sampling, key: sequence.request.key, position: end as u32 };
            let row = PlanRow {
                tokens: sequence.tokens[sequence.computed..end].to_vec(),
                start: sequence.computed as u32,
                blocks: sequence.blocks.clone(),
                draw: last.then_some(draw),
            };
            let set = sequence.request.set;
            let at = groups.iter().position(|g| g.set == set).unwrap_or_else(|| {
                groups.push(PlanGroup { set, rows: Vec::new() });
                self.fed.push(Vec::new());
                groups.len() - 1
            });
            groups[at].rows.push(row);
            self.fed[at].push(Fed { id: *id, tokens: *tokens });
        }
        Plan { copies: std::mem::take(&mut self.copies), groups }
    }

    /// Takes in what the pass drew; returns what is complete.
    pub fn take_in(&mut self, output: &Output) -> Vec<Completion> {
        let mut complete = Vec::new();
        let fed = std::mem::take(&mut self.fed);
        for (rows, draws) in fed.iter().zip(&output.draws) {
            for (row, draw) in rows.iter().zip(draws) {
                self.stats.computed_tokens += row.tokens as u64;
                self.advance(row);
                let Some(sequence) = self.sequences.get_mut(&row.id) else { continue };
                let Some(drawn) = draw else { continue };
                self.stats.drawn_tokens += 1;
                let version = self.versions.get(&sequence.request.set).copied().unwrap_or(0);
                sequence.push(drawn.id, drawn.logprob, version);
                if let Some(finish) = sequence.finished() {
                    complete.extend(self.complete(row.id, finish));
                }
            }
        }
        complete
    }

    /// Counts computed positions and publishes the blocks that are full now.
    fn advance(&mut self, row: &Fed) {
        let per_block = self.config.block_tokens as usize;
        if let Some(sequence) = self.sequences.get_mut(&row.id) {
            sequence.computed += row.tokens;
        }
        while let Some(key) = self.next_key(row.id) {
            let Some(sequence) = self.sequences.get_mut(&row.id) else { return };
            let number = sequence.contents.len();
            if (number + 1) * per_block > sequence.computed {
                break;
            }
            let content = self.blocks.publish(sequence.blocks[number], key);
            sequence.contents.push(content);
        }
        // Others of a group have the same prompt.
        if self.sequences.get(&row.id).is_some_and(|s| s.computed == s.request.prompt.len()) {
            self.name_last(row.id);
        }
    }

    /// Checks the books.
    pub fn check(&self) -> Result<(), String> {
        self.blocks.check(self.sequences.values().flat_map(|s| s.blocks.iter().copied()))
    }
}
