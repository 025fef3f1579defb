//! The swarm: one orchestrator, the sub-agents that it makes, and the rules that they work under.
//!
//! An [`episode::Episode`] is a pure state machine: events in, actions out, no clock, no model, no tools.
//! [`driver::Rollout`] is the shell that gives many episodes their turns, tools and ticks.

mod agent;
pub mod carried;
pub mod driver;
pub mod episode;
mod finish;
pub mod observation;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dialect::{Call, Mode, Role};
use crate::tasks::Task;
use crate::tools::ToolSpec;

/// Name of the tool that registers a sub-agent configuration.
pub const CREATE: &str = "create_subagent";
/// Name of the tool that gives a sub-agent work.
pub const ASSIGN: &str = "assign_task";

/// Which seat an agent sits in: the policy behind a seat is configured once a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seat {
    /// The one that is trained.
    Orchestrator,
    /// Frozen.
    Subagent,
}

/// What happens when an episode's critical steps are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhaustion {
    /// One forced answer turn (costs 1).
    Answer,
    /// The episode fails.
    Fail,
}

/// Limits on one seat's contexts and turns.
#[derive(Debug, Clone, PartialEq)]
pub struct SeatRules {
    /// System prompt of the orchestrator; a sub-agent's comes from its configuration.
    pub system_prompt: String,
    /// How its turns are opened.
    pub mode: Mode,
    /// Turns at most (orchestrator), then the forced answer.
    pub max_turns: u32,
    /// Tokens that its context may hold.
    pub max_context_tokens: u32,
    /// Tokens that one turn may draw.
    pub max_new_tokens: u32,
}

/// The rules of a run's episodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The orchestrator's limits.
    pub orchestrator: SeatRules,
    /// The sub-agents' limits.
    pub subagent: SeatRules,
    /// Tool calls that a sub-agent may make.
    pub subagent_steps: u32,
    /// Critical steps of an episode before the forced answer.
    pub critical_steps: u32,
    /// What happens then.
    pub on_exhaustion: OnExhaustion,
    /// Assignments that one turn may make.
    pub max_concurrent: u32,
    /// Assignments that an episode may make.
    pub max_assignments: u32,
    /// Probability that an assignment is lost after its first step (a flaky fleet, simulated).
    pub outage_rate: f64,
    /// The environment's tools.
    pub tools: Arc<[ToolSpec]>,
}

/// A message of an agent's transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From whom.
    pub role: Role,
    /// Its text, calls left out.
    pub text: String,
    /// An assistant's calls.
    pub calls: Vec<Call>,
    /// Which call of the agent a tool message answers.
    pub call_id: Option<u32>,
}

/// What makes an episode this one and no other.
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodeSpec {
    /// Unique in the run.
    pub episode_id: String,
    /// Episodes of one task at one step.
    pub group_id: String,
    /// The task source's name.
    pub env_id: String,
    /// Seed of the run.
    pub run_seed: u64,
    /// Number of the episode in the random streams.
    pub stream_id: u64,
    /// Which of the policies that the config names for the sub-agents draws their turns.
    pub subagents: usize,
    /// What is asked.
    pub task: Arc<Task>,
}

/// When something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Engine ticks since the rollout began.
    pub tick: u64,
    /// Milliseconds since the rollout began; logged, never decided upon.
    pub ms: i64,
}

/// Why a turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TurnEnd {
    /// The policy drew `<|end|>`.
    Stop,
    /// It ran out of tokens.
    Length,
    /// It ran out of ticks.
    Deadline,
    /// The policy itself failed (an endpoint down): no reward for the episode.
    Failed(String),
}

/// A turn as a policy gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Drawn ids, `<|end|>` included where it was drawn.
    pub ids: Vec<u32>,
    /// Their log-probs, of softmax(logits / temperature).
    pub logprobs: Vec<f32>,
    /// Runs of one weight version over `ids`: `(start, end, version)`.
    pub versions: Vec<(u32, u32, u64)>,
    /// Temperature of the draw; 0 for policies that do not draw.
    pub temperature: f32,
    /// Why it ended.
    pub end: TurnEnd,
    /// When its first token was computed.
    pub started: Moment,
}

/// What an episode wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask the agent's policy for a turn.
    Sample {
        /// Which agent.
        agent: u32,
        /// Tokens that it may draw.
        max_new_tokens: u32,
    },
    /// Call an environment tool.
    Call {
        /// Which agent calls.
        agent: u32,
        /// Number of the call within the agent.
        call: u32,
        /// The tool; it exists, and the number of arguments is right.
        name: String,
        /// In the order of its parameters.
        arguments: Vec<String>,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A turn came back.
    Turn {
        /// Whose.
        agent: u32,
        /// The turn.
        turn: Turn,
    },
    /// A tool came back.
    Tool {
        /// Who called.
        agent: u32,
        /// Number of the call within the agent.
        call: u32,
        /// What it said.
        outcome: crate::tools::ToolOutcome,
    },
}
