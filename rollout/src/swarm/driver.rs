//! The shell around the episodes: gives them turns, tools and ticks until all are over.
//!
//! One round of the loop is one engine tick. Events are handed out in the order (episode, agent, call), so that
//! equal seeds give equal rollouts whatever the machine does.

use std::collections::VecDeque;

use parl_kernels::rng::{RngKey, Stream};
use rayon::prelude::*;

use super::episode::Episode;
use super::finish::Seats;
use super::{Action, EpisodeSpec, Event, Moment, Rules, Seat};
use crate::RolloutError;
use crate::dialect::Dialect;
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
    episode: usize,
    agent: u32,
    call: u32,
    name: String,
    arguments: Vec<String>,
}

/// Runs `specs` to their ends; records come back in the order of `specs`.
///
/// # Errors
/// What the policy, the tokenizer or the tools' machinery fail with; a policy's or a tool's outage is no error
/// but ends its episode with status `error`.
pub fn run(
    stage: &Stage<'_>,
    policy: &mut dyn Policy,
    specs: Vec<EpisodeSpec>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<EpisodeRecord>, RolloutError> {
    let seats = Seats {
        orchestrator: policy.identity(Seat::Orchestrator),
        subagent: policy.identity(Seat::Subagent),
    };
    let total = specs.len();
    let mut waiting: VecDeque<(usize, EpisodeSpec)> = specs.into_iter().enumerate().collect();
    let mut live: Vec<Option<Episode<'_>>> = (0..total).map(|_| None).collect();
    let mut records: Vec<Option<EpisodeRecord>> = (0..total).map(|_| None).collect();
    let mut open = 0;
    let mut now = Moment::default();
    let mut jobs: Vec<ToolJob> = Vec::new();
    let mut state = Progress { total, ..Progress::default() };
    while state.done < total {
        now = Moment { tick: now.tick + 1, ms: (stage.clock_ms)() };
        state.ticks = now.tick;
        while open < stage.max_concurrent_episodes.max(1) {
            let Some((i, spec)) = waiting.pop_front() else { break };
            let (episode, actions) = Episode::start(spec, stage.rules, stage.dialect, now)?;
            dispatch(i, &episode, actions, policy, &mut jobs)?;
            live[i] = Some(episode);
            open += 1;
        }
        let mut events: Vec<(usize, Event)> = call_tools(stage, &live, std::mem::take(&mut jobs));
        now.ms = (stage.clock_ms)();
        let mut turns = policy.tick(now)?;
        turns.sort_by_key(|(who, _)| *who);
        events.extend(
            turns
                .into_iter()
                .map(|(who, turn)| (who.episode as usize, Event::Turn { agent: who.agent, turn })),
        );
        now.ms = (stage.clock_ms)();
        for (i, event) in events {
            let Some(episode) = live[i].as_mut() else { continue };
            let before: Vec<u32> = episode.running_agents().collect();
            let actions = episode.step(event, now)?;
            if episode.outcome().is_some() {
                for agent in before {
                    policy.cancel(AgentRef { episode: i as u64, agent });
                }
            } else {
                dispatch(i, episode, actions, policy, &mut jobs)?;
            }
        }
        // Episodes that ended this tick, those that ended in their first actions included.
        for (slot, record) in live.iter_mut().zip(&mut records) {
            if let Some(over) = slot.take_if(|e| e.outcome().is_some()) {
                *record = Some(over.into_record(&seats, stage.epoch_us, stage.keep_subagent_contexts)?);
                open -= 1;
                state.done += 1;
            }
        }
        progress(state);
    }
    records
        .into_iter()
        .map(|r| r.ok_or_else(|| RolloutError::Internal("an episode has no record".into())))
        .collect()
}

fn dispatch(
    i: usize,
    episode: &Episode<'_>,
    actions: Vec<Action>,
    policy: &mut dyn Policy,
    jobs: &mut Vec<ToolJob>,
) -> Result<(), RolloutError> {
    for action in actions {
        match action {
            Action::Sample { agent, max_new_tokens } => {
                let spec = episode.spec();
                policy.submit(TurnRequest {
                    who: AgentRef { episode: i as u64, agent },
                    seat: episode.seat(agent),
                    task: &spec.task,
                    messages: episode.messages(agent),
                    context: episode.context(agent),
                    max_new_tokens,
                    forced_answer: episode.forced(agent),
                    key: RngKey {
                        seed: spec.run_seed,
                        stream: Stream::Sample,
                        episode: spec.stream_id,
                        agent,
                    },
                })?;
            }
            Action::Call { agent, call, name, arguments } => {
                jobs.push(ToolJob { episode: i, agent, call, name, arguments });
            }
        }
    }
    Ok(())
}

fn call_tools(
    stage: &Stage<'_>,
    live: &[Option<Episode<'_>>],
    mut jobs: Vec<ToolJob>,
) -> Vec<(usize, Event)> {
    jobs.sort_by_key(|j| (j.episode, j.agent, j.call));
    let specs: Vec<Option<(u64, u64)>> =
        live.iter().map(|e| e.as_ref().map(|e| (e.spec().run_seed, e.spec().stream_id))).collect();
    jobs.into_par_iter()
        .map(|job| {
            let fault = specs[job.episode].is_some_and(|(seed, episode)| {
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
