//! The CPU backend: plain, deterministic, and the oracle for others.
//!
//! A plan's rows are shared out between threads; each thread takes its rows through the whole model alone. Since no
//! element's arithmetic depends on its neighbours, the sharing changes no bit.

mod attention;
mod forward;
mod gemm;
mod kv;
mod level;
mod math;
mod model;

pub use level::Level;

use std::collections::HashMap;
use std::time::Instant;

use rayon::prelude::*;

use crate::KernelError;
use crate::backend::{Backend, InstallReport, Output, Plan, PlanGroup, PlanRow, SetId, Ticket};
use crate::weights::WeightSet;
use forward::{Forwarded, Scratch, Wanted, forward};
use kv::{KvPool, KvShape};
use model::Model;

/// Tokens below which a thread of its own costs more than it brings.
const TOKENS_PER_THREAD: usize = 4;

/// The CPU backend.
#[derive(Debug)]
pub struct CpuBackend {
    level: Level,
    threads: usize,
    models: HashMap<SetId, Model>,
    pools: HashMap<KvShape, KvPool>,
    blocks: u32,
    block_tokens: u32,
    scratch: Vec<Scratch>,
    done: HashMap<Ticket, Output>,
    next_ticket: u64,
}

impl CpuBackend {
    /// A backend on up to `threads` of rayon's threads, with the instructions of `level`.
    ///
    /// # Errors
    /// [`KernelError::Plan`] when this CPU has not that level, or `threads` is 0.
    pub fn new(level: Level, threads: usize) -> Result<Self, KernelError> {
        if !Level::available().contains(&level) {
            return Err(KernelError::Plan(format!("this CPU has no {} instructions", level.name())));
        }
        if threads == 0 {
            return Err(KernelError::Plan("threads is 0, must be at least 1".to_owned()));
        }
        Ok(Self {
            level,
            threads,
            models: HashMap::new(),
            pools: HashMap::new(),
            blocks: 0,
            block_tokens: 0,
            scratch: Vec::new(),
            done: HashMap::new(),
            next_ticket: 0,
        })
    }

    /// The instructions in use.
    pub fn level(&self) -> Level {
        self.level
    }

    fn check(&self, plan: &Plan) -> Result<(), KernelError> {
        let refuse = |text: String| Err(KernelError::Plan(text));
        if plan.copies.iter().any(|(from, to)| *from >= self.blocks || *to >= self.blocks) {
            return refuse(format!("a copy names a block outside of the {} reserved", self.blocks));
        }
        // Who writes a block, so that nobody else may touch it.
        let mut writers: HashMap<u32, usize> = HashMap::new();
        let mut readers: Vec<(u32, usize)> = Vec::new();
        for (i, (group, row)) in
            plan.groups.iter().flat_map(|g| g.rows.iter().map(move |r| (g, r))).enumerate()
        {
            let Some(model) = self.models.get(&group.set) else {
                return refuse(format!("no weights are installed for set {}", group.set.0));
            };
            let end = row.start as usize + row.tokens.len();
            if row.tokens.is_empty() {
                return refuse(format!("row {i} has no token"));
            }
            if let Some(token) = row.tokens.iter().find(|t| **t as usize >= model.shape.vocab) {
                return refuse(format!(
                    "row {i}: token {token} is not below the vocabulary ({})",
                    model.shape.vocab
                ));
            }
            if end > model.shape.max_positions {
                return refuse(format!(
                    "row {i}: position {} is not below max_positions ({})",
                    end - 1,
                    model.shape.max_positions
                ));
            }
            let needed = end.div_ceil(self.block_tokens.max(1) as usize);
            if row.blocks.len() < needed {
                return refuse(format!("row {i}: {} blocks cannot hold {end} positions", row.blocks.len()));
            }
            if let Some(block) = row.blocks[..needed].iter().find(|b| **b >= self.blocks) {
                return refuse(format!("row {i}: block {block} is outside of the {} reserved", self.blocks));
            }
            if let Some(draw) = &row.draw {
                draw.sampling.validate()?;
            }
            let first_written = (row.start / self.block_tokens.max(1)) as usize;
            for (b, block) in row.blocks[..needed].iter().enumerate() {
                if b < first_written {
                    readers.push((*block, i));
                } else if writers.insert(*block, i).is_some() {
                    return refuse(format!("two rows write block {block}"));
                }
            }
        }
        match readers.iter().find(|(block, i)| writers.get(block).is_some_and(|w| w != i)) {
            Some((block, i)) => refuse(format!("row {i} reads block {block}, which another row writes")),
            None => Ok(()),
        }
    }

    fn run(&mut self, plan: &Plan, wanted: Wanted) -> Result<Vec<Forwarded>, KernelError> {
        self.check(plan)?;
        for (from, to) in &plan.copies {
            for pool in self.pools.values_mut() {
                pool.copy(*from, *to);
            }
        }
        plan.groups.iter().map(|group| self.run_group(group, wanted)).collect()
    }

    fn run_group(&mut self, group: &PlanGroup, wanted: Wanted) -> Result<Forwarded, KernelError> {
        let missing = || KernelError::Plan(format!("no weights are installed for set {}", group.set.0));
        let model = self.models.get(&group.set).ok_or_else(missing)?;
        let kv = self.pools.get_mut(&model.kv_shape()).ok_or_else(missing)?.share();
        let shares = share_out(&group.rows, self.threads);
        self.scratch.resize_with(self.scratch.len().max(shares.len()), Scratch::default);
        let level = self.level;
        let work = |(rows, scratch): (&Vec<usize>, &mut Scratch)| {
            let rows: Vec<&PlanRow> = rows.iter().map(|r| &group.rows[*r]).collect();
            forward(level, model, &kv, &rows, wanted, scratch)
        };
        let parts: Vec<Forwarded> = match shares.as_slice() {
            [_] => shares.iter().zip(&mut self.scratch).map(work).collect(),
            _ => shares.par_iter().zip(&mut self.scratch).map(work).collect(),
        };
        // Back into the order of the rows.
        let mut whole = Forwarded::default();
        whole.draws.resize(if wanted == Wanted::Draws { group.rows.len() } else { 0 }, None);
        whole.logits.resize(if wanted == Wanted::Logits { group.rows.len() } else { 0 }, Vec::new());
        for (rows, part) in shares.iter().zip(parts) {
            for (row, draw) in rows.iter().zip(part.draws) {
                whole.draws[*row] = draw;
            }
            for (row, logits) in rows.iter().zip(part.logits) {
                whole.logits[*row] = logits;
            }
        }
        Ok(whole)
    }
}

/// Indices of rows for each thread, balanced by tokens: the longest first, each to who has least.
fn share_out(rows: &[PlanRow], threads: usize) -> Vec<Vec<usize>> {
    let total: usize = rows.iter().map(|r| r.tokens.len()).sum();
    let threads = threads.min(rows.len()).min(total / TOKENS_PER_THREAD).max(1);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|r| std::cmp::Reverse(rows[*r].tokens.len()));
    let mut shares = vec![(0usize, Vec::new()); threads];
    for row in order {
        if let Some(least) = shares.iter_mut().min_by_key(|s| s.0) {
            least.0 += rows[row].tokens.len();
            least.1.push(row);
        }
    }
    shares.into_iter().map(|s| s.1).collect()
}

impl Backend for CpuBackend {
    fn install(&mut self, set: SetId, weights: WeightSet) -> Result<InstallReport, KernelError> {
        let started = Instant::now();
        let model = Model::new(&weights)?;
        let packed_bytes = model.bytes();
        let shape = model.kv_shape();
        let (blocks, block_tokens) = (self.blocks, self.block_tokens as usize);
        self.pools.entry(shape).or_insert_with(|| KvPool::new(shape, blocks, block_tokens));
        self.models.insert(set, model);
        Ok(InstallReport { packed_bytes, pack_seconds: started.elapsed().as_secs_f64() })
    }

    fn release(&mut self, set: SetId) {
        self.models.remove(&set);
    }

    fn reserve_kv(&mut self, blocks: u32, block_tokens: u32) -> Result<(), KernelError> {
        if blocks == 0 || block_tokens == 0 {
            return Err(KernelError::Plan(format!(
                "{blocks} blocks of {block_tokens} tokens: both must be at least 1"
            )));
        }
        (self.blocks, self.block_tokens) = (blocks, block_tokens);
        for (shape, pool) in &mut self.pools {
            *pool = KvPool::new(*shape, blocks, block_tokens as usize);
        }
        Ok(())
    }

    fn kv_block_bytes(&self) -> u64 {
        self.pools.keys().map(|shape| shape.block_bytes(self.block_tokens as usize)).sum()
    }

    fn submit(&mut self, plan: &Plan) -> Result<Ticket, KernelError> {
        let groups = self.run(plan, Wanted::Draws)?;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.done.insert(ticket, Output { draws: groups.into_iter().map(|g| g.draws).collect() });
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Output, KernelError> {
        self.done.remove(&ticket).ok_or_else(|| KernelError::Plan(format!("ticket {} is not open", ticket.0)))
    }

    fn logits(&mut self, plan: &Plan) -> Result<Vec<Vec<Vec<Vec<f32>>>>, KernelError> {
        Ok(self.run(plan, Wanted::Logits)?.into_iter().map(|g| g.logits).collect())
    }
}

#[cfg(test)]
mod tests;
