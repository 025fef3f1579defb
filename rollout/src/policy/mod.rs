//! Policies: who draws an agent's turns.

pub mod local;
pub mod pair;
pub mod scripted;

use parl_kernels::rng::RngKey;
use parl_kernels::weights::WeightSet;

use crate::RolloutError;
use crate::engine::Begun;
use crate::swarm::{Message, Moment, Seat, Turn};
use crate::tasks::Task;

/// An agent of an episode of the current rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentRef {
    /// Number of the episode in the rollout.
    pub episode: u64,
    /// Number of the agent in the episode.
    pub agent: u32,
}

/// Who a policy is, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Kind and name or hash, as in `scripted:serial` or `local:3f9a…`.
    pub name: String,
    /// Whether it is the one that is trained.
    pub trainable: bool,
}

/// One turn that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct TurnRequest<'a> {
    /// Whose turn.
    pub who: AgentRef,
    /// Its seat.
    pub seat: Seat,
    /// Which of the policies that the config names for the sub-agents draws the turns of the episode's.
    pub subagents: usize,
    /// The episode's task, with its decomposition; scripted policies alone may look at it.
    pub task: &'a Task,
    /// The transcript.
    pub messages: &'a [Message],
    /// The whole context in ids, the turn's opening included.
    pub context: &'a [u32],
    /// What is drawn of the turn already, where it goes on after an interruption; scripts begin anew.
    pub begun: Option<&'a Begun>,
    /// Tokens that may be drawn, those of `begun` included.
    pub max_new_tokens: u32,
    /// Whether only an answer will be accepted.
    pub forced_answer: bool,
    /// The random stream of the agent.
    pub key: RngKey,
}

/// Draws turns. Requests are taken in at once and answered on some later tick, each exactly once unless it is
/// cancelled.
pub trait Policy: Send {
    /// Who sits in `seat`; of the policies that the config names for the sub-agents, the `number`-th.
    fn identity(&self, seat: Seat, number: usize) -> Identity;

    /// Asks for a turn.
    ///
    /// # Errors
    /// When the request cannot be served at all.
    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError>;

    /// Withdraws a request; unknown ones are ignored.
    fn cancel(&mut self, who: AgentRef);

    /// Advances by one tick and returns the turns that are complete.
    ///
    /// # Errors
    /// When the machinery itself breaks; a turn that failed is no error but `TurnEnd::Failed`.
    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError>;

    /// Takes in new weights for a seat, under which its turns under way go on; policies without weights have nothing to
    /// do.
    ///
    /// # Errors
    /// When the weights are refused; the old ones are then still in use.
    fn publish(&mut self, _seat: Seat, _weights: WeightSet) -> Result<(), RolloutError> {
        Ok(())
    }

    /// Gives back the lease on a seat's weights, so that they may be written; [`Policy::publish`] brings new ones.
    /// Nothing may be under way.
    fn give_back(&mut self, _seat: Seat) {}

    /// Drops what is only kept to be faster (cached prefixes, contexts of turns under way): what follows depends on
    /// nothing but the weights and on what [`Policy::under_way`] tells.
    fn forget(&mut self) {}

    /// Turns under way with what is drawn of each, in the order in which they are served. A request with its `begun` in
    /// it, made to a fresh policy in this order, goes on as it would have here. Policies that draw a turn at once have
    /// nothing to tell: the request alone gives the same turn.
    fn under_way(&self) -> Vec<(AgentRef, Begun)> {
        Vec::new()
    }

    /// Draws a seat's turns at another temperature from now on.
    fn set_temperature(&mut self, _seat: Seat, _temperature: f32) {}
}
