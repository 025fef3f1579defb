//! The engine: continuous batching over a backend, with a prefix cache.
//!
//! Orchestrators and sub-agents are sequences in one batch, each under its own weight set. A prompt that several
//! sequences share is computed once. One [`Engine::tick`] is one pass of the backend, and the unit of logical time.

mod blocks;
mod scheduler;
mod sequence;

pub use scheduler::Stats;
pub use sequence::{Begun, Completion, Finish, Request, RequestId};

use parl_kernels::backend::{Backend, InstallReport, SetId};
use parl_kernels::weights::WeightSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::RolloutError;
use scheduler::Scheduler;

/// The engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Positions of a KV block. Contexts that begin alike share full blocks, and copy what is alike in the one after them.
    #[schemars(range(min = 1, max = 1024))]
    pub block_tokens: u32,
    /// KV blocks.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub kv_blocks: u32,
    /// Tokens that one pass may compute.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_batch_tokens: u32,
    /// Sequences under way at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_running: u32,
    /// Type in which a card keeps keys and values. A CPU has `auto` alone.
    pub kv_cache_dtype: KvCacheDtype,
}

/// Type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvCacheDtype {
    /// That of the weights.
    #[default]
    Auto,
    /// E4M3 without scales, beside weights in bf16: half of the memory, and draws that are further from the learner's
    /// distribution.
    Fp8,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            block_tokens: 16,
            kv_blocks: 8192,
            max_batch_tokens: 2048,
            max_running: 512,
            kv_cache_dtype: KvCacheDtype::Auto,
        }
    }
}

/// The engine.
pub struct Engine {
    backend: Box<dyn Backend>,
    scheduler: Scheduler,
    config: EngineConfig,
    max_positions: std::collections::HashMap<SetId, usize>,
}

impl Engine {
    /// An engine over `backend`, whose KV it reserves.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn new(mut backend: Box<dyn Backend>, config: EngineConfig) -> Result<Self, RolloutError> {
        backend.reserve_kv(config.kv_blocks, config.block_tokens)?;
        let scheduler = Scheduler::new(config.clone());
        Ok(Self { backend, scheduler, config, max_positions: std::collections::HashMap::new() })
    }

    /// Takes in a version of a weight set.
    ///
    /// # Errors
    /// What the backend refuses; the old version is then still there.
    pub fn install(&mut self, set: SetId, weights: WeightSet) -> Result<InstallReport, RolloutError> {
        let (version, positions) = (weights.version(), weights.shape().max_positions);
        let report = self.backend.install(set, weights)?;
        self.max_positions.insert(set, positions);
        self.scheduler.set_version(set, version);
        Ok(report)
    }

    /// Gives back the lease on a set; nothing of it may be under way, and nothing of it is served until it is
    /// installed again.
    pub fn release(&mut self, set: SetId) {
        self.backend.release(set);
        self.max_positions.remove(&set);
    }

    /// Puts all that runs back into the queue, in its order, to compute its KV anew, and drops every cached prefix:
    /// what follows depends on nothing but what [`Engine::under_way`] tells, and on the weights.
    pub fn park(&mut self) {
        self.scheduler.park();
    }

    /// All that is under way with what is drawn of it, in the order in which it is served.
    pub fn under_way(&self) -> Vec<(RequestId, Begun)> {
        self.scheduler.under_way()
    }

    /// The version of a set.
    pub fn version(&self, set: SetId) -> Option<u64> {
        self.scheduler.version(set)
    }

    /// Takes in a request.
    ///
    /// # Errors
    /// [`RolloutError::Internal`] for a request that can never be served: an empty context, one that is longer than
    /// the model or all KV blocks can hold, one that is drawn to its end, unknown weights, an id in use.
    pub fn submit(&mut self, request: Request) -> Result<(), RolloutError> {
        let refuse = |text: String| Err(RolloutError::Internal(format!("request {}: {text}", request.id.0)));
        let Some(positions) = self.max_positions.get(&request.set) else {
            return refuse(format!("no weights are installed for set {}", request.set.0));
        };
        let length = request.prompt.len() + request.max_new_tokens as usize;
        let capacity = self.config.kv_blocks as usize * self.config.block_tokens as usize;
        if request.prompt.is_empty() || request.max_new_tokens == 0 {
            return refuse("it has no context or nothing to draw".to_owned());
        }
        if length > (*positions).min(capacity) {
            return refuse(format!(
                "{length} tokens are more than the model ({positions}) or the KV blocks ({capacity}) hold"
            ));
        }
        let begun = &request.begun;
        let ended = begun.ids.iter().any(|id| request.stop.contains(id));
        if begun.ids.len() >= request.max_new_tokens as usize
            || begun.ids.len() != begun.logprobs.len()
            || ended
        {
            return refuse("what is drawn of it is no beginning".to_owned());
        }
        if self.scheduler.holds(request.id) {
            return refuse("its id is in use".to_owned());
        }
        request.sampling.validate()?;
        self.scheduler.submit(request);
        Ok(())
    }

    /// Withdraws a request and frees what it holds at once; unknown ones are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id);
    }

    /// One pass.
    ///
    /// # Errors
    /// What the backend fails with.
    pub fn tick(&mut self) -> Result<Vec<Completion>, RolloutError> {
        let mut complete = self.scheduler.expire();
        let plan = self.scheduler.plan();
        if !plan.groups.is_empty() {
            let ticket = self.backend.submit(&plan)?;
            let output = self.backend.collect(ticket)?;
            complete.extend(self.scheduler.take_in(&output));
        }
        Ok(complete)
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.scheduler.stats
    }

    /// Checks that no block is lost or counted twice.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.scheduler.check()
    }
}

#[cfg(test)]
mod tests;
