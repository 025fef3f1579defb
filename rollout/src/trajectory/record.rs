//! One finished episode as plain data: what the swarm hands to the log, to the rewards and to the learner.
//! Fields are named as in the tables (`docs/log.md` describes them), so that rows of the log read back as these types.

use std::collections::BTreeMap;

use parl_rewards::critical::Stage;
use serde::{Deserialize, Serialize};

use crate::tasks::{Split, TaskKind};

/// How an episode ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It gave an answer of its own accord.
    Ok,
    /// It gave its answer in the one forced turn after the budget.
    Budget,
    /// It ended without an answer: a limit was hit.
    Truncated,
    /// Infrastructure failed: no reward.
    Error,
}

impl Status {
    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Budget => "budget",
            Self::Truncated => "truncated",
            Self::Error => "error",
        }
    }
}

/// One component of the reward; the reward is the sum of `value` over components.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardPart {
    /// `r_perf`, `r_parallel`, `r_finish`, or a plugin's own.
    pub component: String,
    /// Before its weight.
    pub raw: f64,
    /// Its weight at this step (λ, or 1).
    pub weight: f64,
    /// What it adds to the reward.
    pub value: f64,
    /// Which part of the program gave it.
    pub source: String,
}

/// What the rewards made of an episode; `None` in [`EpisodeRecord`] while it is not scored, and for ever when
/// infrastructure failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Sum of the parts.
    pub reward: f64,
    /// Reward less its group's baseline, over the group's scale if there is one; `None` when it was never compared.
    pub advantage: Option<f64>,
    /// Success (every item right).
    pub success: bool,
    /// Before weights.
    pub r_perf: f64,
    /// Before weights.
    pub r_parallel: f64,
    /// Before weights.
    pub r_finish: f64,
    /// λ1 at this step.
    pub lambda_parallel: f64,
    /// λ2 at this step.
    pub lambda_finish: f64,
    /// Name of the shaping stage.
    pub stage: String,
    /// `k25` or `blog`.
    pub reward_form: String,
    /// Rows of the rewards table.
    #[serde(default)]
    pub parts: Vec<RewardPart>,
}

/// One assignment of work: row 0 is the orchestrator, each `assign_task` adds one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// 0 = the orchestrator, then in order of assignment.
    pub agent_idx: u32,
    /// Who assigned it; `None` for the orchestrator.
    pub parent_idx: Option<u32>,
    /// Name of the configuration.
    pub name: String,
    /// Its system prompt.
    pub system_prompt: String,
    /// Policy and hash, as in `local:0c3f…` or `scripted:serial`.
    pub policy: String,
    /// Whether its tokens may be trained on.
    pub trainable: bool,
    /// The stage that it ran in; `None` for the orchestrator.
    pub stage: Option<u32>,
    /// What it was asked.
    pub assigned_prompt: String,
    /// Its one final message; `None` when it failed.
    pub final_message: Option<String>,
    /// `done`, or why not: `step_limit`, `context`, `malformed`, `deadline`, `outage`, `down`.
    pub finish_reason: String,
    /// A final message within the limits, without error, after at least one environment call.
    pub finished: bool,
    /// Environment calls that it made.
    pub n_steps: u32,
    /// Tokens that were put into its context.
    pub tokens_in: u64,
    /// Tokens that it sampled.
    pub tokens_out: u64,
    /// Engine tick at which it started.
    pub start_tick: u64,
    /// Engine tick at which it ended.
    pub end_tick: u64,
    /// Milliseconds since the episode began.
    pub t_start_ms: i64,
    /// Milliseconds since the episode began.
    pub t_end_ms: i64,
    /// The longest of its stage (the orchestrator always).
    pub on_critical_path: bool,
}

/// A message that entered a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Which call a tool message answers.
    pub tool_call_id: Option<String>,
}

/// A tool call inside a model call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRecord {
    /// Unique in the agent.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Arguments as a JSON object.
    pub arguments_json: String,
    /// Milliseconds since the episode began.
    pub t_start_ms: i64,
    /// Milliseconds since the episode began.
    pub t_end_ms: i64,
    /// Whether it came back with an error observation.
    pub error: bool,
}

/// One model call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Whose.
    pub agent_idx: u32,
    /// From 0 within the agent.
    pub step_idx: u32,
    /// The orchestrator's stage number (from 0, one a turn); for a sub-agent its assignment's stage.
    pub stage: u32,
    /// The orchestrator's own cost of this turn, S_main(t); 0 for sub-agents.
    pub s_main: u32,
    /// Messages that entered the context since the agent's last call, and the assistant's own.
    pub messages_delta: Vec<MessageRecord>,
    /// Tool calls of the turn.
    pub tool_calls: Vec<CallRecord>,
    /// `stop`, `length`, `forced`, `cancelled`.
    pub finish_reason: String,
    /// Temperature at which it was drawn.
    pub temperature: f32,
    /// Tokens in the context when it started.
    pub n_prompt: u32,
    /// Tokens that it sampled.
    pub n_completion: u32,
    /// Milliseconds since the episode began: asked for.
    pub t_queue_ms: i64,
    /// Milliseconds since the episode began: first computed.
    pub t_start_ms: i64,
    /// Milliseconds since the episode began: complete.
    pub t_end_ms: i64,
    /// Weight version that drew its first token.
    pub policy_version: u64,
}

/// Sampled tokens that one weight version drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRun {
    /// Index of the first token in the context.
    pub start: u32,
    /// Index after the last.
    pub end: u32,
    /// The version.
    pub version: u64,
}

/// The token ids of a trainable context, exactly as the engine saw and sampled them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TokenBranch {
    /// From 0 within the episode.
    pub branch_idx: u32,
    /// The whole context.
    pub token_ids: Vec<u32>,
    /// True where the policy sampled the id of its own accord.
    pub loss_mask: Vec<bool>,
    /// Recorded log-probs; 0 off the mask.
    pub logprobs: Vec<f32>,
    /// Index of the first token of each model call's completion.
    pub step_offsets: Vec<u32>,
    /// Temperature of each model call, parallel to `step_offsets`.
    pub temperatures: Vec<f32>,
    /// Runs of equal weight version over the sampled tokens.
    pub policy_versions: Vec<VersionRun>,
    /// Per-token advantages; `None` until they are computed.
    pub advantages: Option<Vec<f32>>,
}

/// One episode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpisodeRecord {
    /// Unique in the run.
    pub episode_id: String,
    /// Episodes of one task at one step.
    pub group_id: String,
    /// The task source.
    pub env_id: String,
    /// The task.
    pub task_id: String,
    /// Its side of the split.
    pub split: Split,
    /// Its kind.
    pub task_kind: TaskKind,
    /// Items, hops or parts.
    pub n_items: u32,
    /// The key of the episode's random streams.
    pub seed: u64,
    /// Microseconds since 1970, UTC.
    #[serde(rename = "started_at")]
    pub started_at_us: i64,
    /// Wall-clock milliseconds.
    pub duration_ms: i64,
    /// How it ended.
    pub status: Status,
    /// Infrastructure's words when it failed.
    pub error: Option<String>,
    /// The policy's own failure when it did not answer well: `budget`, `no_answer`, `context`, `malformed`, …
    pub failure_kind: Option<String>,
    /// The final answer.
    pub answer: Option<String>,
    /// Reward and its parts.
    #[serde(flatten)]
    pub scored: Option<Scored>,
    /// Sub-agent configurations made.
    pub n_subagents: u32,
    /// Assignments made.
    pub n_assigned: u32,
    /// Assignments that finished.
    pub n_finished: u32,
    /// Most assignments running in one stage.
    #[serde(rename = "max_concurrent")]
    pub max_concurrency: u32,
    /// Stages, one an orchestrator turn.
    pub n_stages: u32,
    /// Σ over stages of (Σ S_main + max n_steps).
    pub critical_steps: u32,
    /// Σ of all steps of all agents.
    pub total_steps: u32,
    /// Milliseconds along the critical path.
    pub critical_ms: i64,
    /// Milliseconds of all agents together.
    pub total_ms: i64,
    /// Tokens put into contexts by others than the policies.
    pub prompt_tokens: u64,
    /// Tokens sampled.
    pub completion_tokens: u64,
    /// Oldest weight version that drew one of the orchestrator's tokens.
    pub policy_version_min: u64,
    /// Newest.
    pub policy_version_max: u64,
    /// Rows of the agents table.
    #[serde(default)]
    pub agents: Vec<AgentRecord>,
    /// Rows of the steps table.
    #[serde(default)]
    pub steps: Vec<StepRecord>,
    /// Rows of the tokens table.
    #[serde(default)]
    pub branches: Vec<TokenBranch>,
}

impl EpisodeRecord {
    /// Its stages by number, as its rows tell them; what `rewards::critical` counts critical steps of.
    pub fn stages(&self) -> BTreeMap<u32, Stage> {
        let mut stages: BTreeMap<u32, Stage> = BTreeMap::new();
        for step in self.steps.iter().filter(|step| step.agent_idx == 0) {
            stages.entry(step.stage).or_default().s_main += step.s_main;
        }
        for agent in &self.agents {
            if let Some(stage) = agent.stage {
                stages.entry(stage).or_default().sub_steps.push(agent.n_steps);
            }
        }
        stages
    }
}
