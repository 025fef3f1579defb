//! The `learner` section of a run's config.

use parl_rewards::schedule::Schedule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AdamW, Muon, Objective, Optimizer};

/// The learner. It trains the orchestrator wherever that is a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LearnerConfig {
    /// What is minimised.
    pub objective: Objective,
    /// Updates that a step's groups are shared out to, whole groups in their order; from the second on, ratios are not 1
    /// and clips act.
    #[schemars(range(min = 1, max = 100_000))]
    pub updates_per_step: u32,
    /// Learning rate over training steps; it names its own length.
    pub lr: Schedule,
    /// Steps over which the learning rate rises to the schedule's.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub warmup_steps: u64,
    /// AdamW's settings.
    pub adamw: AdamW,
    /// With these, projections are moved by Muon; without, everything goes by AdamW.
    pub muon: Option<Muon>,
    /// Gradients longer than this are scaled down to it.
    #[schemars(range(min = 0.0, max = 1e9))]
    pub grad_clip: f64,
    /// Tokens of a micro-batch, at most; a longer sample is one of its own.
    #[schemars(range(min = 64, max = 100_000_000))]
    pub micro_batch_tokens: u32,
    /// Workers, one libtorch thread each; 0 takes all cores. The bits of an update do not depend on it.
    #[schemars(range(min = 0, max = 4096))]
    pub threads: u32,
}

impl Default for LearnerConfig {
    fn default() -> Self {
        Self {
            objective: Objective::K25 { alpha: 0.8, beta: 1.25, tau: 1e-3 },
            updates_per_step: 1,
            lr: Schedule::Constant { value: 2.5e-4 },
            warmup_steps: 5,
            adamw: AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 },
            muon: None,
            grad_clip: 1.0,
            micro_batch_tokens: 2048,
            threads: 0,
        }
    }
}

impl LearnerConfig {
    /// The learning rate at a training step (from 0).
    pub fn lr_at(&self, step: u64) -> f64 {
        let risen = if self.warmup_steps == 0 { 1.0 } else { (step + 1) as f64 / self.warmup_steps as f64 };
        self.lr.at(step) * risen.min(1.0)
    }

    /// An optimizer without a history.
    pub fn optimizer(&self) -> Optimizer {
        Optimizer::new(self.adamw, self.muon)
    }

    /// `threads`, with 0 resolved.
    pub fn workers(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => n as usize,
        }
    }

    /// What is out of bounds: `(key, message)`, keys relative to the section.
    pub fn issues(&self) -> Vec<(String, String)> {
        let mut issues: Vec<(String, String)> =
            self.lr.issues().into_iter().map(|(key, m)| (format!("lr.{key}"), m)).collect();
        issues.extend(self.objective.issues().into_iter().map(|(key, m)| (format!("objective.{key}"), m)));
        issues
    }
}
