//! The whole config: one section a subject, each owned by the crate that it is about.

use parl_rewards::config::RewardsConfig;
use parl_rollout::config::{RolloutConfig, RolloutMode};
use parl_rollout::tasks::atlas::AtlasConfig;
use parl_rollout::tasks::dataset::DatasetConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Issue, Validate};
use crate::learner::config::LearnerConfig;
use crate::sft::SftConfig;
use crate::track::config::TrackingConfig;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// A card where all that it needs is found, else the CPU, and a line says what is missing.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first card, or no run (docs/gpu.md).
    Cuda,
}

/// Type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl From<Dtype> for parl_kernels::weights::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// The run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run and of its folder.
    pub name: String,
    /// Folder of all runs.
    pub dir: String,
    /// What local models are computed on.
    pub device: Device,
    /// Type of local models' weights, in engine and learner alike; the optimizer keeps f32 values of bf16 weights that it
    /// trains. A CPU multiplies weights of either type in f32, a card in their own.
    pub dtype: Dtype,
    /// On a card, a context's tokens and log-probs have the same bits whatever else is drawn beside it. `false` lets
    /// cuBLASLt multiply large batches in bf16, which is faster.
    pub deterministic: bool,
    /// Seed of everything that is drawn, the world and its tasks excepted (`tasks.seed`).
    pub seed: u64,
    /// Training steps in all.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_steps: u64,
    /// A checkpoint is made after every so many steps, and at the end.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept; 0 keeps all.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub keep_last: u32,
    /// Stop cleanly after so many steps of this launch, to go on later; `null` goes to the end.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub stop_after_steps: Option<u64>,
    /// Held-out tasks of the table at the end; 0 leaves it out.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub final_eval_tasks: u32,
    /// Temperature of a local orchestrator on held-out tasks; `null` takes its training temperature.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub eval_temperature: Option<f32>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            name: "parl".to_owned(),
            dir: "runs".to_owned(),
            device: Device::default(),
            dtype: Dtype::default(),
            deterministic: true,
            seed: 0,
            max_steps: 10,
            checkpoint_every: 20,
            keep_last: 2,
            stop_after_steps: None,
            final_eval_tasks: 100,
            eval_temperature: None,
        }
    }
}

/// Where tasks come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TasksConfig {
    /// The generated world.
    Atlas(AtlasConfig),
    /// Tasks and a corpus from files.
    Dataset(DatasetConfig),
}

impl Default for TasksConfig {
    fn default() -> Self {
        Self::Atlas(AtlasConfig::default())
    }
}

/// A run's config.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The run.
    pub run: RunConfig,
    /// Where tasks come from.
    pub tasks: TasksConfig,
    /// Rollouts.
    pub rollout: RolloutConfig,
    /// Rewards.
    pub rewards: RewardsConfig,
    /// The learner.
    pub learner: LearnerConfig,
    /// The warm start (`trainer sft`).
    pub sft: SftConfig,
    /// Copies of the metrics for tools that people look at runs with (docs/tracking.md).
    pub tracking: TrackingConfig,
}

impl Config {
    /// Steps that rollouts may be ahead of the learner, so that no token is staler than `rollout.max_staleness`; 0 in sync
    /// mode. A step makes at most `updates_per_step` versions, and its last update trains at as many less one.
    pub fn lead(&self) -> u64 {
        if self.rollout.mode == RolloutMode::Sync {
            return 0;
        }
        let updates = u64::from(self.learner.updates_per_step);
        ((u64::from(self.max_staleness()) + 1) / updates).saturating_sub(1)
    }

    /// `rollout.max_staleness`, or what two steps' lead comes to.
    fn max_staleness(&self) -> u32 {
        self.rollout.max_staleness.unwrap_or_else(|| 3 * self.learner.updates_per_step - 1)
    }
}

impl Validate for Config {
    fn issues(&self) -> Vec<Issue> {
        let tasks = match &self.tasks {
            TasksConfig::Atlas(atlas) => atlas.validate(),
            TasksConfig::Dataset(dataset) => dataset.validate(),
        };
        let sections = [
            ("tasks", tasks),
            ("rollout", self.rollout.validate()),
            ("rewards", self.rewards.issues()),
            ("learner", self.learner.issues()),
            ("tracking", self.tracking.issues()),
        ];
        let mut issues: Vec<Issue> = sections
            .into_iter()
            .flat_map(|(section, faults)| {
                faults
                    .into_iter()
                    .map(move |(key, message)| Issue { key: format!("{section}.{key}"), message })
            })
            .collect();
        let (updates, tasks) = (self.learner.updates_per_step, self.rollout.tasks_per_step);
        if updates > tasks {
            let message =
                format!("{updates} is above rollout.tasks_per_step ({tasks}): an update takes whole groups");
            issues.push(Issue { key: "learner.updates_per_step".to_owned(), message });
        }
        if self.rollout.mode == RolloutMode::Async && self.lead() == 0 {
            let (bound, least) = (self.max_staleness(), 2 * updates - 1);
            let message = format!(
                "{bound} is below {least}, what being one step ahead comes to with learner.updates_per_step {updates}"
            );
            issues.push(Issue { key: "rollout.max_staleness".to_owned(), message });
        }
        let name = &self.run.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            let message = format!("`{name}` is not a plain folder name of letters, digits, `-`, `_` and `.`");
            issues.push(Issue { key: "run.name".to_owned(), message });
        }
        issues
    }

    fn resolve(&mut self) {
        if self.rollout.mode == RolloutMode::Async {
            self.rollout.max_staleness = Some(self.max_staleness());
        }
        let named = self.learner.objective.rule();
        self.rewards.baseline.get_or_insert(named.baseline);
        self.rewards.scale.get_or_insert(named.scale);
        self.learner.objective.resolve_length(self.rollout.orchestrator.max_context_tokens);
    }
}
