//! Work under way as data: what a rollout needs to be gone on with in another process.
//!
//! An episode is a pure function of what happened to it, so what happened is all that is kept: it is told again, and
//! what it still waits for is asked for again.

use serde::{Deserialize, Serialize};

use super::episode::Episode;
use super::{Action, EpisodeSpec, Event, Moment, Rules};
use crate::RolloutError;
use crate::dialect::Dialect;
use crate::engine::Begun;

/// What happened to an episode so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Its number in the rollout.
    pub number: u64,
    /// When it began.
    pub began: Moment,
    /// Turns and tools' results, in their order.
    pub events: Vec<(Moment, Event)>,
}

/// A turn that is asked for and not complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenTurn {
    /// Number of the episode.
    pub episode: u64,
    /// Number of the agent in it.
    pub agent: u32,
    /// What is drawn of it.
    pub begun: Begun,
}

/// A rollout between two ticks, right after its policy was told to forget.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// Ticks so far.
    pub tick: u64,
    /// Episodes under way, by number.
    pub episodes: Vec<Journal>,
    /// Their open turns, in the order in which the policy serves them.
    pub turns: Vec<OpenTurn>,
}

impl Journal {
    /// The episode as it was, and what it waits for.
    pub(super) fn replay<'a>(
        &self,
        spec: EpisodeSpec,
        rules: &'a Rules,
        dialect: &'a Dialect,
    ) -> Result<(Episode<'a>, Vec<Action>), RolloutError> {
        let (mut episode, mut open) = Episode::start(spec, rules, dialect, self.began)?;
        for (when, event) in &self.events {
            open.retain(|action| !answers(event, action));
            open.extend(episode.step(event.clone(), *when)?);
        }
        if episode.outcome().is_some() {
            let id = &episode.spec().episode_id;
            return Err(RolloutError::Internal(format!("episode {id} is over and was carried over")));
        }
        Ok((episode, open))
    }
}

fn answers(event: &Event, action: &Action) -> bool {
    match (event, action) {
        (Event::Turn { agent, .. }, Action::Sample { agent: asked, .. }) => agent == asked,
        (Event::Tool { agent, call, .. }, Action::Call { agent: asked, call: of, .. }) => {
            (agent, call) == (asked, of)
        }
        _ => false,
    }
}
