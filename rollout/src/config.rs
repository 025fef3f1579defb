//! The `rollout` section of a run's config.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dialect::Mode;
use crate::engine::EngineConfig;
use crate::policy::scripted::Script;
use crate::swarm::{OnExhaustion, Rules, SeatRules};
use crate::tools::ToolSpec;
use crate::tools::corpus::SearchConfig;

/// Who draws the turns of a seat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyConfig {
    /// A script.
    Scripted {
        /// Which one.
        script: Script,
    },
    /// A model on this machine.
    Local {
        /// Its folder, as Hugging Face lays it out: config.json, model.safetensors, tokenizer.json. In a config file
        /// a relative path begins at that file's folder.
        model: String,
        /// Temperature of the draw.
        #[schemars(range(min = 0.0, max = 100.0))]
        temperature: f32,
    },
}

/// The orchestrator's seat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OrchestratorConfig {
    /// Who draws its turns.
    pub policy: PolicyConfig,
    /// Its system prompt. It must not speak of working in parallel: whether to is what is learned.
    pub system_prompt: String,
    /// How its turns are opened.
    pub mode: Mode,
    /// Turns at most; then one forced answer.
    #[schemars(range(min = 1, max = 10000))]
    pub max_turns: u32,
    /// Tokens that its context may hold.
    #[schemars(range(min = 16, max = 1_048_576))]
    pub max_context_tokens: u32,
    /// Tokens that one of its turns may draw.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_new_tokens: u32,
}

/// Other sub-agents from some step of the run on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LaterPolicy {
    /// The first training step (from 0) whose turns they draw.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub from_step: u64,
    /// Who draws their turns then: a model, as the first ones are.
    pub policy: PolicyConfig,
}

/// The sub-agents' seats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SubagentConfig {
    /// Who draws their turns; always frozen.
    pub policy: PolicyConfig,
    /// Who does later in the run, in the order of their steps: small models first, larger ones when the orchestrator
    /// can use them, say. Evaluations before the first step have the first ones, all others the last.
    pub later: Vec<LaterPolicy>,
    /// How their turns are opened.
    pub mode: Mode,
    /// Tool calls that each may make.
    #[schemars(range(min = 1, max = 10000))]
    pub max_steps: u32,
    /// Tokens that a context may hold.
    #[schemars(range(min = 16, max = 1_048_576))]
    pub max_context_tokens: u32,
    /// Tokens that a turn may draw.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_new_tokens: u32,
    /// Probability that an assignment is lost after its first step: a flaky fleet, simulated.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub outage_rate: f64,
}

/// What happens when the critical steps are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exhaustion {
    /// One forced answer turn.
    #[default]
    Answer,
    /// The episode fails.
    Fail,
}

/// The budget of an episode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Critical steps: the orchestrator's own, and the longest sub-agent of each stage.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub critical_steps: u32,
    /// What happens then.
    pub on_exhaustion: Exhaustion,
    /// Assignments that one turn may make.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_concurrent: u32,
    /// Assignments that an episode may make.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_assignments: u32,
}

/// Whether rollouts and updates take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutMode {
    /// All episodes of a step end, then it is learned from, then the next step's begin under the new weights.
    #[default]
    Sync,
    /// While a step is learned from, the episodes of the next ones go on, some of them over several updates: each token
    /// is of the weights that drew it.
    Async,
}

/// Rollouts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Whether rollouts and updates take turns.
    pub mode: RolloutMode,
    /// In async mode: weight versions that a token may be behind the one whose update it trains. Episodes begin no sooner
    /// than keeps this bound, so that none is thrown away. `null` lets rollouts be two steps ahead of the learner.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_staleness: Option<u32>,
    /// Tasks of a training step.
    #[schemars(range(min = 1, max = 100_000))]
    pub tasks_per_step: u32,
    /// Episodes of each task: the group that an advantage is taken in.
    #[schemars(range(min = 1, max = 10000))]
    pub group_size: u32,
    /// Episodes under way at once; in async mode never more than a step has.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_concurrent_episodes: u32,
    /// The orchestrator.
    pub orchestrator: OrchestratorConfig,
    /// The sub-agents.
    pub subagent: SubagentConfig,
    /// Budget of an episode.
    pub budget: BudgetConfig,
    /// The engine that draws for local models.
    pub engine: EngineConfig,
    /// The search tool.
    pub search: SearchConfig,
    /// Probability that a tool call fails with an error observation.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub tool_fault_rate: f64,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        Self {
            policy: PolicyConfig::Scripted { script: Script::Parallel },
            system_prompt: "lead".to_owned(),
            mode: Mode::Instant,
            max_turns: 64,
            max_context_tokens: 2048,
            max_new_tokens: 512,
        }
    }
}

impl Default for SubagentConfig {
    fn default() -> Self {
        Self {
            policy: PolicyConfig::Scripted { script: Script::Serial },
            later: Vec::new(),
            mode: Mode::Instant,
            max_steps: 6,
            max_context_tokens: 512,
            max_new_tokens: 64,
            outage_rate: 0.02,
        }
    }
}

impl SubagentConfig {
    /// All policies that sit here in the course of a run, in order.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyConfig> {
        std::iter::once(&self.policy).chain(self.later.iter().map(|later| &later.policy))
    }

    /// Which of [`SubagentConfig::policies`] draws at a training step.
    pub fn number_at(&self, step: u64) -> usize {
        self.later.iter().take_while(|later| later.from_step <= step).count()
    }

    fn issues(&self) -> Vec<(String, String)> {
        let mut issues = Vec::new();
        let local = |policy: &PolicyConfig| matches!(policy, PolicyConfig::Local { .. });
        let mut before = 0;
        for (i, later) in self.later.iter().enumerate() {
            if later.from_step <= before {
                let message =
                    format!("{} is not after step {before}, where the one before begins", later.from_step);
                issues.push((format!("subagent.later[{i}].from_step"), message));
            }
            before = later.from_step;
            if !local(&later.policy) || !local(&self.policy) {
                let message = "only a model can follow a model; scripts stay to the end".to_owned();
                issues.push((format!("subagent.later[{i}].policy"), message));
            }
        }
        issues
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            critical_steps: 14,
            on_exhaustion: Exhaustion::Answer,
            max_concurrent: 100,
            max_assignments: 100,
        }
    }
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            mode: RolloutMode::Sync,
            max_staleness: None,
            tasks_per_step: 8,
            group_size: 8,
            max_concurrent_episodes: 256,
            orchestrator: OrchestratorConfig::default(),
            subagent: SubagentConfig::default(),
            budget: BudgetConfig::default(),
            engine: EngineConfig::default(),
            search: SearchConfig::default(),
            tool_fault_rate: 0.0,
        }
    }
}

impl RolloutConfig {
    /// What is out of bounds beyond single keys: `(key, message)`, keys relative to the section.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut faults: Vec<(String, String)> = self
            .search
            .validate()
            .into_iter()
            .map(|(key, message)| (format!("search.{key}"), message))
            .collect();
        let seats = [
            ("orchestrator", self.orchestrator.max_new_tokens, self.orchestrator.max_context_tokens),
            ("subagent", self.subagent.max_new_tokens, self.subagent.max_context_tokens),
        ];
        for (seat, new, context) in seats {
            if new >= context {
                let message = format!("{new} is not below {seat}.max_context_tokens ({context})");
                faults.push((format!("{seat}.max_new_tokens"), message));
            }
        }
        faults.extend(self.subagent.issues());
        if let (RolloutMode::Sync, Some(bound)) = (self.mode, self.max_staleness) {
            let message =
                format!("{bound} has no effect in sync mode: set rollout.mode to async or leave it out");
            faults.push(("max_staleness".to_owned(), message));
        }
        if self.budget.max_concurrent > self.budget.max_assignments {
            let message = format!(
                "{} is above budget.max_assignments ({})",
                self.budget.max_concurrent, self.budget.max_assignments
            );
            faults.push(("budget.max_concurrent".to_owned(), message));
        }
        faults
    }

    /// The rules of the run's episodes.
    pub fn rules(&self, tools: &[ToolSpec]) -> Rules {
        let (orchestrator, subagent) = (&self.orchestrator, &self.subagent);
        Rules {
            orchestrator: SeatRules {
                system_prompt: orchestrator.system_prompt.clone(),
                mode: orchestrator.mode,
                max_turns: orchestrator.max_turns,
                max_context_tokens: orchestrator.max_context_tokens,
                max_new_tokens: orchestrator.max_new_tokens,
            },
            subagent: SeatRules {
                system_prompt: String::new(),
                mode: subagent.mode,
                // Each turn with a call is a step, and the last one answers.
                max_turns: subagent.max_steps + 1,
                max_context_tokens: subagent.max_context_tokens,
                max_new_tokens: subagent.max_new_tokens,
            },
            subagent_steps: subagent.max_steps,
            critical_steps: self.budget.critical_steps,
            on_exhaustion: match self.budget.on_exhaustion {
                Exhaustion::Answer => OnExhaustion::Answer,
                Exhaustion::Fail => OnExhaustion::Fail,
            },
            max_concurrent: self.budget.max_concurrent,
            max_assignments: self.budget.max_assignments,
            outage_rate: subagent.outage_rate,
            tools: Arc::from(tools),
        }
    }
}
