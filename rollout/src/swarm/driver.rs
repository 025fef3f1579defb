//! The shell around the episodes: gives them turns, tools and ticks until all are over.
//!
//! One round of the loop is one engine tick. Events are handed out in the order (episode, agent, call), so that
//! equal seeds give equal rollouts whatever the machine does.

use std::collections::BTreeMap;

use parl_kernels::rng::{RngKey, Stream};
use rayon::prelude::*;

use super::carried::{Carried, Journal, OpenTurn};
use super::episode::Episode;
use super::finish::Seats;
use super::{Action, EpisodeSpec, Event, Moment, Rules, Seat};
use crate::RolloutError;
use crate::dialect::Dialect;
use crate::engine::Begun;
use crate::policy::{AgentRef, Policy, TurnRequest};
use crate::tools::{ToolOutcome, Tools};
use crate::trajectory::record::EpisodeRecord;

/// What a rollout needs besides its episodes.
pub struct Stage<'a> {
    /// The rules of every episode.
    pub rules: &'a Rules,
    /// How contexts are spelt.
    pub dialect: &'a Dialect,
    /// The environment.
    pub tools: &'a dyn Tools,
    /// Probability that a tool call fails with an error observation.
    pub tool_fault_rate: f64,
    /// Episodes under way at once.
    pub max_concurrent_episodes: usize,
    /// Keep the sub-agents' contexts in the records too: demonstrations to learn from.
    pub keep_subagent_contexts: bool,
    /// Milliseconds since the rollout began; only logged.
    pub clock_ms: &'a (dyn Fn() -> i64 + Sync),
    /// Wall clock at which the rollout began, microseconds since 1970.
    pub epoch_us: i64,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Episodes that are over.
    pub done: usize,
    /// Episodes in all.
    pub total: usize,
    /// Ticks so far.
    pub ticks: u64,
}

struct ToolJob {
    episode: u64,
    agent: u32,
    call: u32,
    name: String,
    arguments: Vec<String>,
}

struct Live<'a> {
    episode: Episode<'a>,
    journal: Journal,
}

/// Episodes that wait and episodes under way; it lives for as long as it is given more.
pub struct Rollout<'a> {
    stage: &'a Stage<'a>,
    waiting: BTreeMap<u64, EpisodeSpec>,
    live: BTreeMap<u64, Live<'a>>,
    jobs: Vec<ToolJob>,
    ticks: u64,
}

/// Runs `specs` to their ends; records come back in the order of `specs`.
///
/// # Errors
/// As [`Rollout::tick`].
pub fn run(
    stage: &Stage<'_>,
    policy: &mut dyn Policy,
    specs: Vec<EpisodeSpec>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<EpisodeRecord>, RolloutError> {
    let total = specs.len();
    let mut rollout = Rollout::new(stage);
    for (number, spec) in (0..).zip(specs) {
        rollout.admit(number, spec);
    }
    let mut records = BTreeMap::new();
    while records.len() < total {
        records.extend(rollout.tick(policy)?);
        progress(Progress { done: records.len(), total, ticks: rollout.ticks });
    }
    Ok(records.into_values().collect())
}

impl<'a> Rollout<'a> {
    /// Without an episode yet.
    pub fn new(stage: &'a Stage<'a>) -> Self {
        Self { stage, waiting: BTreeMap::new(), live: BTreeMap::new(), jobs: Vec::new(), ticks: 0 }
    }

    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// Takes an episode in, which begins when there is room and none with a smaller number waits. No two with one number
    /// may be there at a time.
    pub fn admit(&mut self, number: u64, spec: EpisodeSpec) {
        self.waiting.insert(number, spec);
    }

    /// One tick; returns the episodes that ended, by number.
    ///
    /// # Errors
    /// What the policy, the tokenizer or the tools' machinery fail with; a policy's or a tool's outage is no error
    /// but ends its episode with status `error`.
    pub fn tick(&mut self, policy: &mut dyn Policy) -> Result<Vec<(u64, EpisodeRecord)>, RolloutError> {
        let stage = self.stage;
        self.ticks += 1;
        let mut now = Moment { tick: self.ticks, ms: (stage.clock_ms)() };
        while self.live.len() < stage.max_concurrent_episodes.max(1) {
            let Some((number, spec)) = self.waiting.pop_first() else { break };
            let (episode, actions) = Episode::start(spec, stage.rules, stage.dialect, now)?;
            dispatch(number, &episode, actions, policy, &mut self.jobs)?;
            let journal = Journal { number, began: now, events: Vec::new() };
            self.live.insert(number, Live { episode, journal });
        }
        let mut events = self.call_tools();
        now.ms = (stage.clock_ms)();
        let mut turns = policy.tick(now)?;
        turns.sort_by_key(|(who, _)| *who);
        events.extend(
            turns.into_iter().map(|(who, turn)| (who.episode, Event::Turn { agent: who.agent, turn })),
        );
        now.ms = (stage.clock_ms)();
        for (number, event) in events {
            let Some(Live { episode, journal }) = self.live.get_mut(&number) else { continue };
            let before: Vec<u32> = episode.running_agents().collect();
            journal.events.push((now, event.clone()));
            let actions = episode.step(event, now)?;
            if episode.outcome().is_some() {
                for agent in before {
                    policy.cancel(AgentRef { episode: number, agent });
                }
            } else {
                dispatch(number, episode, actions, policy, &mut self.jobs)?;
            }
        }
        // Episodes that ended this tick, those that ended in their first actions included.
        let mut records = Vec::new();
        for (number, over) in self.live.extract_if(.., |_, live| live.episode.outcome().is_some()) {
            let seats = Seats {
                orchestrator: policy.identity(Seat::Orchestrator, 0),
                subagent: policy.identity(Seat::Subagent, over.episode.spec().subagents),
            };
            // What was asked for a moment before its end must not reach another of its number.
            self.jobs.retain(|job| job.episode != number);
            let record = over.episode.into_record(&seats, stage.epoch_us, stage.keep_subagent_contexts)?;
            records.push((number, record));
        }
        Ok(records)
    }

    /// The episodes under way, for [`Rollout::go_on`]; right after [`Policy::forget`].
    pub fn carried(&self, policy: &dyn Policy) -> Carried {
        let open =
            |(who, begun): (AgentRef, Begun)| OpenTurn { episode: who.episode, agent: who.agent, begun };
        Carried {
            tick: self.ticks,
            episodes: self.live.values().map(|live| live.journal.clone()).collect(),
            turns: policy.under_way().into_iter().map(open).collect(),
        }
    }

    /// Goes on with episodes of a rollout that was left, in this fresh one and with a fresh policy; those that were not
    /// admitted are dropped.
    ///
    /// # Errors
    /// What the policy or the tokenizer fail with; [`RolloutError::Internal`] for episodes that cannot have been left so.
    pub fn go_on(&mut self, carried: Carried, policy: &mut dyn Policy) -> Result<(), RolloutError> {
        self.ticks = carried.tick;
        let mut open: BTreeMap<AgentRef, u32> = BTreeMap::new();
        for journal in carried.episodes {
            let number = journal.number;
            let Some(spec) = self.waiting.remove(&number) else { continue };
            let (episode, actions) = journal.replay(spec, self.stage.rules, self.stage.dialect)?;
            for action in actions {
                match action {
                    Action::Sample { agent, max_new_tokens } => {
                        open.insert(AgentRef { episode: number, agent }, max_new_tokens);
                    }
                    Action::Call { .. } => dispatch(number, &episode, vec![action], policy, &mut self.jobs)?,
                }
            }
            self.live.insert(number, Live { episode, journal });
        }
        // First what the policy had begun, in its order; then what it gives from the request alone.
        for turn in carried.turns {
            let who = AgentRef { episode: turn.episode, agent: turn.agent };
            if let (Some(live), Some(most)) = (self.live.get(&who.episode), open.remove(&who)) {
                sample(&live.episode, who, most, Some(&turn.begun), policy)?;
            }
        }
        for (who, most) in open {
            if let Some(live) = self.live.get(&who.episode) {
                sample(&live.episode, who, most, None, policy)?;
            }
        }
        Ok(())
    }

    fn call_tools(&mut self) -> Vec<(u64, Event)> {
        let mut jobs = std::mem::take(&mut self.jobs);
        jobs.sort_by_key(|j| (j.episode, j.agent, j.call));
        let (stage, live) = (self.stage, &self.live);
        jobs.into_par_iter()
            .map(|job| {
                let fault = live.get(&job.episode).is_some_and(|live| {
                    let spec = live.episode.spec();
                    let (seed, episode) = (spec.run_seed, spec.stream_id);
                    let key = RngKey { seed, stream: Stream::Faults, episode, agent: job.agent };
                    // Counter 0 decides the agent's outage.
                    key.uniform_f64(job.call + 1) < stage.tool_fault_rate
                });
                let outcome = if fault {
                    ToolOutcome::Error("busy".to_owned())
                } else {
                    stage.tools.call(&job.name, &job.arguments).unwrap_or_else(|| {
                        ToolOutcome::Error(super::observation::reason::UNKNOWN_TOOL.to_owned())
                    })
                };
                (job.episode, Event::Tool { agent: job.agent, call: job.call, outcome })
            })
            .collect()
    }
}

fn dispatch(
    number: u64,
    episode: &Episode<'_>,
    actions: Vec<Action>,
    policy: &mut dyn Policy,
    jobs: &mut Vec<ToolJob>,
) -> Result<(), RolloutError> {
    for action in actions {
        match action {
            Action::Sample { agent, max_new_tokens } => {
                sample(episode, AgentRef { episode: number, agent }, max_new_tokens, None, policy)?;
            }
            Action::Call { agent, call, name, arguments } => {
                jobs.push(ToolJob { episode: number, agent, call, name, arguments });
            }
        }
    }
    Ok(())
}

/// Asks for a turn.
fn sample(
    episode: &Episode<'_>,
    who: AgentRef,
    max_new_tokens: u32,
    begun: Option<&Begun>,
    policy: &mut dyn Policy,
) -> Result<(), RolloutError> {
    let (spec, agent) = (episode.spec(), who.agent);
    policy.submit(TurnRequest {
        who,
        seat: episode.seat(agent),
        subagents: spec.subagents,
        task: &spec.task,
        messages: episode.messages(agent),
        context: episode.context(agent),
        begun,
        max_new_tokens,
        forced_answer: episode.forced(agent),
        key: RngKey { seed: spec.run_seed, stream: Stream::Sample, episode: spec.stream_id, agent },
    })
}
