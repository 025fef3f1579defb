//! Scripted policies: references to measure against, and the source of demonstrations.
//!
//! A script sees the task's decomposition and its own transcript and says its next turn in words; the turn is
//! encoded as if it had been drawn. Scripts act on what they observe: a failed sub-agent is tried again, a
//! budget that ran out leaves its items out of the answer.

mod orchestrators;
mod progress;
mod solver;

use std::sync::Arc;

use parl_kernels::rng::RngKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AgentRef, Identity, Policy, TurnRequest};
use crate::RolloutError;
use crate::dialect::{Call, Dialect};
use crate::swarm::{Message, Moment, Seat, Turn, TurnEnd};
use crate::tasks::Task;

/// Name that scripts give to their one sub-agent configuration.
pub const AGENT_NAME: &str = "scout";
/// System prompt of that configuration.
pub const AGENT_PROMPT: &str = "finder";

/// The scripts there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Script {
    /// Works alone, one part after the other.
    Serial,
    /// Hands independent parts to sub-agents at once, does chains itself, tries failed parts again.
    Parallel,
    /// Hands every part to a sub-agent, level by level of the task's decomposition.
    Human,
    /// Makes many assignments that have nothing to do with the task.
    Spammer,
    /// Makes a few different assignments that ask for nothing, then works alone: parallel in looks only.
    Spurious,
    /// Does something at random.
    Random,
}

impl Script {
    /// The name in configs and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Parallel => "parallel",
            Self::Human => "human",
            Self::Spammer => "spammer",
            Self::Spurious => "spurious",
            Self::Random => "random",
        }
    }
}

/// What a script says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Say {
    pub text: String,
    pub calls: Vec<Call>,
}

impl Say {
    fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), calls: Vec::new() }
    }

    fn call(call: Call) -> Self {
        Self { text: String::new(), calls: vec![call] }
    }
}

/// What a script sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub task: &'a Task,
    pub messages: &'a [Message],
    pub forced_answer: bool,
    pub key: RngKey,
}

/// A scripted policy in a seat.
pub struct Scripted {
    script: Script,
    dialect: Arc<Dialect>,
    ready: Vec<(AgentRef, Vec<u32>)>,
}

impl Scripted {
    /// `script` in the orchestrator's seat; in a sub-agent's seat every script but `random` and `spammer` works
    /// one item: search, open, report.
    pub fn new(script: Script, dialect: Arc<Dialect>) -> Self {
        Self { script, dialect, ready: Vec::new() }
    }
}

/// What `script` says next in `seat`.
pub(crate) fn say(script: Script, seat: Seat, view: View<'_>) -> Say {
    match (seat, script) {
        (_, Script::Random) => orchestrators::random(view, seat),
        (Seat::Subagent, Script::Spammer) => Say::text("none"),
        (Seat::Subagent, _) => solver::solve(view),
        (Seat::Orchestrator, Script::Serial) => orchestrators::serial(view),
        (Seat::Orchestrator, Script::Parallel) => {
            orchestrators::delegate(view, orchestrators::Delegate::Independent)
        }
        (Seat::Orchestrator, Script::Human) => {
            orchestrators::delegate(view, orchestrators::Delegate::Everything)
        }
        (Seat::Orchestrator, Script::Spammer) => orchestrators::spammer(view),
        (Seat::Orchestrator, Script::Spurious) => orchestrators::spurious(view),
    }
}

impl Policy for Scripted {
    fn identity(&self, _seat: Seat, _number: usize) -> Identity {
        Identity { name: format!("scripted:{}", self.script.name()), trainable: false }
    }

    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        let view = View {
            task: request.task,
            messages: request.messages,
            forced_answer: request.forced_answer,
            key: request.key,
        };
        let said = say(self.script, request.seat, view);
        let mut ids = self.dialect.encode_turn(&said.text, &said.calls)?;
        ids.truncate(request.max_new_tokens as usize);
        self.ready.push((request.who, ids));
        Ok(())
    }

    fn cancel(&mut self, who: AgentRef) {
        self.ready.retain(|(ready, _)| *ready != who);
    }

    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        let end = self.dialect.special().end;
        let turn = |ids: Vec<u32>| Turn {
            logprobs: vec![0.0; ids.len()],
            versions: vec![(0, ids.len() as u32, 0)],
            temperature: 0.0,
            end: if ids.last() == Some(&end) { TurnEnd::Stop } else { TurnEnd::Length },
            started: now,
            ids,
        };
        Ok(self.ready.drain(..).map(|(who, ids)| (who, turn(ids))).collect())
    }
}
