//! The CPU backend: rayon and vector instructions chosen at run time.
//!
//! Batch-invariant: a row's bits depend on its weights, its sequence and the [`Level`], never on the other rows,
//! their order, the number of threads, or on how its prefill is cut.

#![expect(
    clippy::inline_always,
    reason = "vector code exists only where it is inlined into its level's function"
)]

mod attention;
mod buffer;
mod forward;
mod gemm;
mod kv;
mod level;
pub(crate) mod math;
mod model;
mod simd;
mod times;
pub mod training;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rayon::prelude::*;

use self::forward::{Pass, Scratch};
use self::kv::{Geometry, Kv, Pool};
pub use self::level::Level;
use self::model::Model;
pub use self::times::{Part, Times};
use crate::KernelError;
use crate::backend::{Backend, InstallReport, Output, Plan, PlanRow, SetId, Ticket};
use crate::plan::{Reserved, Writers, check};
use crate::weights::WeightSet;

/// Most tokens that one thread takes through the layers at once: their activations stay in its cache.
const CHUNK_TOKENS: usize = 128;

/// Fewest multiply-adds worth handing to another thread.
const CHUNK_FMAS: usize = 1 << 22;

/// Inference on the CPU. Plans run inside [`Backend::submit`], on the rayon pool that it is called in.
pub struct CpuBackend {
    level: Level,
    models: HashMap<SetId, Model>,
    pools: Vec<Pool>,
    reserved: Reserved,
    writers: Writers,
    scratch: Mutex<Vec<Scratch>>,
    times: Arc<Times>,
    done: HashMap<Ticket, Result<Output, KernelError>>,
    next: u64,
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuBackend")
            .field("level", &self.level)
            .field("reserved", &self.reserved)
            .finish_non_exhaustive()
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new(Level::best())
    }
}

/// Rows of one group that go through the layers together.
struct Chunk<'a> {
    group: usize,
    model: &'a Model,
    kv: Kv,
    rows: &'a [PlanRow],
}

impl CpuBackend {
    /// A backend without weights, at the level given.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            models: HashMap::new(),
            pools: Vec::new(),
            reserved: Reserved { blocks: 0, block_tokens: 1 },
            writers: Writers::default(),
            scratch: Mutex::default(),
            times: Arc::default(),
            done: HashMap::new(),
            next: 0,
        }
    }

    /// The level in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Where the time of its passes goes, as they run.
    pub fn times(&self) -> Arc<Times> {
        Arc::clone(&self.times)
    }

    /// Gives every installed geometry a pool, and drops the pools that no model needs any more.
    fn fit_pools(&mut self) {
        let wanted: Vec<Geometry> = self.models.values().map(|m| Geometry::of(m.shape())).collect();
        self.pools.retain(|p| wanted.contains(&p.geometry));
        for geometry in wanted {
            if !self.pools.iter().any(|p| p.geometry == geometry) {
                let Reserved { blocks, block_tokens } = self.reserved;
                self.pools.push(Pool::new(geometry, blocks as usize, block_tokens as usize));
            }
        }
    }

    /// Checks the plan, makes its copies and has `run` compute each chunk; results come in the order of the rows.
    fn pass<T: Send>(
        &mut self,
        plan: &Plan,
        run: impl Fn(&Chunk<'_>, &mut Scratch) -> T + Sync,
    ) -> Result<Vec<(usize, T)>, KernelError> {
        check(plan, self.reserved, |set| self.models.get(set).map(Model::shape), &mut self.writers)?;
        for pool in &mut self.pools {
            for &(from, to) in &plan.copies {
                pool.copy(from, to);
            }
        }
        for group in &plan.groups {
            let reached = group.rows.iter().map(|r| r.start as usize + r.tokens.len()).max();
            if let (Some(model), Some(reached)) = (self.models.get_mut(&group.set), reached) {
                model.reach(reached);
            }
        }
        let mut chunks = Vec::new();
        for (g, group) in plan.groups.iter().enumerate() {
            let Some(model) = self.models.get(&group.set) else { continue };
            let geometry = Geometry::of(model.shape());
            let Some(pool) = self.pools.iter_mut().find(|p| p.geometry == geometry) else { continue };
            let kv = pool.shared();
            let ranges = split(&group.rows, model, rayon::current_num_threads());
            chunks.extend(ranges.into_iter().map(|r| Chunk { group: g, model, kv, rows: &group.rows[r] }));
        }
        let one = |chunk: &Chunk<'_>| {
            let spare = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut scratch = spare.unwrap_or_default();
            let result = run(chunk, &mut scratch);
            self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
            (chunk.group, result)
        };
        Ok(match &chunks[..] {
            // Each product is shared out: from inside of the pool, whose threads need not be woken for each.
            [chunk] if chunk.model.streamed => vec![rayon::scope(|_| one(chunk))],
            [chunk] => vec![one(chunk)],
            _ => chunks.par_iter().with_max_len(1).map(one).collect(),
        })
    }
}

/// Cuts rows into runs of about equal work: enough of them to balance the threads, none too small to be worth a
/// thread's waking, none too large for its cache (a row is never cut).
fn split(rows: &[PlanRow], model: &Model, threads: usize) -> Vec<Range<usize>> {
    let total: usize = rows.iter().map(|r| r.tokens.len()).sum();
    let fewest = CHUNK_FMAS.div_ceil(model.fmas_per_token()).max(1);
    // Weights that no cache holds are read once for all rows, and the threads share out each product's outputs.
    let together = threads == 1 || model.streamed;
    let wanted = if together { CHUNK_TOKENS } else { total.div_ceil(2 * threads) };
    let most = wanted.clamp(fewest, fewest.max(CHUNK_TOKENS));
    let (mut ranges, mut first, mut tokens) = (Vec::new(), 0, 0);
    for (i, row) in rows.iter().enumerate() {
        tokens += row.tokens.len();
        if tokens >= most || i + 1 == rows.len() {
            ranges.push(first..i + 1);
            (first, tokens) = (i + 1, 0);
        }
    }
    ranges
}

impl Backend for CpuBackend {
    fn install(&mut self, set: SetId, weights: WeightSet) -> Result<InstallReport, KernelError> {
        let start = Instant::now();
        let model = Model::new(self.level, weights)?;
        let packed_bytes = model.packed_bytes() as u64;
        self.models.insert(set, model);
        self.fit_pools();
        Ok(InstallReport { packed_bytes, pack_seconds: start.elapsed().as_secs_f64() })
    }

    fn release(&mut self, set: SetId) {
        self.models.remove(&set);
    }

    fn reserve_kv(&mut self, blocks: u32, block_tokens: u32) -> Result<(), KernelError> {
        self.reserved = Reserved::new(blocks, block_tokens)?;
        self.writers = Writers::default();
        self.pools.clear();
        self.fit_pools();
        Ok(())
    }

    fn kv_block_bytes(&self) -> u64 {
        self.pools.iter().map(|p| (p.layout.block_floats() * size_of::<f32>()) as u64).sum()
    }

    #[allow(unsafe_code)]
    fn submit(&mut self, plan: &Plan) -> Result<Ticket, KernelError> {
        let (level, times) = (self.level, self.times());
        let parts = self.pass(plan, |chunk, scratch| {
            let pass = Pass { level, model: chunk.model, kv: chunk.kv, times: &times };
            // SAFETY: `pass` checked the plan whose chunks these are.
            unsafe { pass.draws(chunk.rows, scratch) }
        })?;
        let mut output =
            Output { draws: plan.groups.iter().map(|g| Vec::with_capacity(g.rows.len())).collect() };
        let mut failed = None;
        for (group, part) in parts {
            match part {
                Ok(draws) => output.draws[group].extend(draws),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.done.insert(ticket, failed.map_or(Ok(output), Err));
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Output, KernelError> {
        self.done
            .remove(&ticket)
            .unwrap_or_else(|| Err(KernelError::Plan(format!("ticket {} is not open", ticket.0))))
    }

    #[allow(unsafe_code)]
    fn logits(&mut self, plan: &Plan) -> Result<Vec<Vec<Vec<Vec<f32>>>>, KernelError> {
        let (level, times) = (self.level, self.times());
        let parts = self.pass(plan, |chunk, scratch| {
            let pass = Pass { level, model: chunk.model, kv: chunk.kv, times: &times };
            // SAFETY: `pass` checked the plan whose chunks these are.
            unsafe { pass.logits(chunk.rows, scratch) }
        })?;
        let mut all: Vec<Vec<_>> = plan.groups.iter().map(|_| Vec::new()).collect();
        for (group, rows) in parts {
            all[group].extend(rows);
        }
        Ok(all)
    }
}
