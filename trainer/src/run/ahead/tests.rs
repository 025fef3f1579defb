//! Rollouts ahead of the learner, over scripts whose turns take as long as they like.

use parl_kernels::rng::{RngKey, Stream};
use parl_rollout::RolloutError;
use parl_rollout::config::RolloutMode;
use parl_rollout::engine::Begun;
use parl_rollout::policy::scripted::Script;
use parl_rollout::policy::{AgentRef, Identity, TurnRequest};
use parl_rollout::swarm::{Moment, Seat, Turn, TurnEnd};

use super::*;
use crate::run::rollout::stage;
use crate::run::seats;

const STEPS: u64 = 7;
/// Requests that are served in a tick, in their order.
const SERVED: usize = 5;

struct Open {
    who: AgentRef,
    key: RngKey,
    turn: Turn,
    begun: Begun,
}

/// Scripts whose tokens come a few at a time, at each agent's own random pace, under the version that there is then.
/// Some episodes' first turns fail once, as an endpoint would.
struct Slow {
    scripts: Box<dyn Policy>,
    version: u64,
    failed: BTreeSet<u64>,
    open: Vec<Open>,
}

impl Slow {
    fn new(environment: &Environment, version: u64, failed: BTreeSet<u64>) -> Self {
        let scripts = seats::experts(environment, Script::Parallel);
        Self { scripts, version, failed, open: Vec::new() }
    }
}

impl Policy for Slow {
    fn identity(&self, seat: Seat, number: usize) -> Identity {
        self.scripts.identity(seat, number)
    }

    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        self.scripts.submit(request)?;
        let key = RngKey { stream: Stream::Shuffle, ..request.key };
        let begun = request.begun.cloned().unwrap_or_default();
        for (who, turn) in self.scripts.tick(Moment::default())? {
            self.open.push(Open { who, key, turn, begun: begun.clone() });
        }
        Ok(())
    }

    fn cancel(&mut self, who: AgentRef) {
        self.open.retain(|open| open.who != who);
    }

    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        let version = self.version;
        let mut over = Vec::new();
        for (at, Open { who, key, turn, begun }) in self.open.iter_mut().enumerate() {
            begun.waited += 1;
            if at >= SERVED {
                continue;
            }
            let from = begun.ids.len();
            let pace = key.block(1 + begun.waited as u32)[0] % 9;
            let to = (from + pace as usize).min(turn.ids.len());
            begun.ids.extend_from_slice(&turn.ids[from..to]);
            begun.logprobs.resize(to, -0.1 - version as f32);
            match begun.versions.last_mut() {
                Some(run) if run.2 == version => run.1 = to as u32,
                _ if to > from => begun.versions.push((from as u32, to as u32, version)),
                _ => {}
            }
            if to == turn.ids.len() {
                let done = begun.clone();
                let (logprobs, versions) = (done.logprobs, done.versions);
                if key.uniform_f64(0) < 0.05 && self.failed.insert(key.episode) {
                    turn.end = TurnEnd::Failed("the endpoint is down".to_owned());
                }
                over.push((*who, Turn { logprobs, versions, started: now, ..turn.clone() }));
            }
        }
        self.open.retain(|open| over.iter().all(|(who, _)| *who != open.who));
        Ok(over)
    }

    fn under_way(&self) -> Vec<(AgentRef, Begun)> {
        self.open.iter().map(|open| (open.who, open.begun.clone())).collect()
    }
}

fn config(seed: u64, updates: u32, bound: u32) -> Config {
    let mut config = Config::default();
    (config.run.seed, config.run.max_steps) = (seed, STEPS);
    (config.rollout.mode, config.rollout.max_staleness) = (RolloutMode::Async, Some(bound));
    (config.rollout.tasks_per_step, config.rollout.group_size) = (2, 3);
    config.rollout.subagent.outage_rate = 0.1;
    config.rollout.tool_fault_rate = 0.1;
    config.learner.updates_per_step = updates;
    config
}

fn quiet(_: Progress) {}

#[test]
fn the_lead_is_what_the_bound_allows() {
    let lead = |updates, bound| config(0, updates, bound).lead();
    assert_eq!([lead(1, 1), lead(1, 2), lead(1, 7)], [1, 2, 7]);
    // Two updates a step: one step ahead is up to three versions behind, two steps up to five.
    assert_eq!([lead(2, 2), lead(2, 3), lead(2, 4), lead(2, 5)], [0, 1, 1, 2]);
    assert_eq!(Config::default().lead(), 0);
}

#[test]
fn no_token_is_staler_than_the_bound() {
    for (seed, updates, bound) in [(0, 1, 1), (1, 1, 2), (2, 1, 5), (3, 2, 3), (4, 2, 5), (5, 3, 9)] {
        let config = config(seed, updates, bound);
        let environment = Environment::new(&config).unwrap();
        let stage = stage(&config, &environment, &environment.rules, places(&config), &|| 0, 0);
        let mut ahead = Ahead::new(&config, &environment, &stage);
        let mut slow = Slow::new(&environment, 0, BTreeSet::new());
        let (mut worst, mut crossed) = (0, 0);
        for step in 0..STEPS {
            ahead.admit(step);
            ahead.until(step, &mut slow, &mut quiet).unwrap();
            // The last of the step's updates is made on weights of this version.
            let trained = slow.version + u64::from(updates) - 1;
            for record in ahead.take(step).unwrap().records {
                worst = worst.max(trained - record.policy_version_min);
                crossed += u32::from(record.policy_version_min < record.policy_version_max);
                let runs = &record.branches[0].policy_versions;
                assert_eq!(runs.iter().map(|run| run.version).min(), Some(record.policy_version_min));
                assert_eq!(runs.iter().map(|run| run.version).max(), Some(record.policy_version_max));
            }
            ahead.until(step + 1, &mut slow, &mut quiet).unwrap();
            slow.version += u64::from(updates);
        }
        assert!(worst <= u64::from(bound), "{worst} versions behind, the bound is {bound}");
        // One step ahead is waited for; two and more go over swaps, and make use of what they may.
        let lead = config.lead();
        assert!(
            worst >= u64::from(updates) * lead.min(2) && (crossed > 0) == (lead > 1),
            "{lead} {worst} {crossed}"
        );
    }
}

#[test]
fn what_a_checkpoint_holds_goes_on_as_if_nothing_had_been() {
    let config = config(8, 1, 3);
    let environment = Environment::new(&config).unwrap();
    let stage = stage(&config, &environment, &environment.rules, places(&config), &|| 0, 0);
    // From `first` on, with what was saved there; returns the records and what is saved before each step.
    let go_on = |first: u64, saved: Option<(Vec<u8>, BTreeSet<u64>)>| {
        let mut ahead = Ahead::new(&config, &environment, &stage);
        let failed = saved.as_ref().map(|saved| saved.1.clone()).unwrap_or_default();
        let mut slow = Slow::new(&environment, first, failed);
        if let Some((saved, _)) = &saved {
            ahead.restore(saved, first, &mut slow).unwrap();
        }
        let (mut records, mut states) = (Vec::new(), Vec::new());
        for step in first..STEPS {
            states.push((ahead.save(&slow).unwrap(), slow.failed.clone()));
            ahead.admit(step);
            ahead.until(step, &mut slow, &mut quiet).unwrap();
            records.push(ahead.take(step).unwrap().records);
            ahead.until(step + 1, &mut slow, &mut quiet).unwrap();
            slow.version += 1;
        }
        (records, states, slow.failed)
    };
    let (whole, states, failed) = go_on(0, None);
    assert!(!failed.is_empty(), "no episode failed: another seed is needed");
    assert!(whole.iter().flatten().all(|record| record.status != Status::Error && record.scored.is_some()));
    let begun = |saved: &Vec<u8>| parse(saved).unwrap().carried.turns.iter().any(|t| !t.begun.ids.is_empty());
    assert!(states.iter().filter(|(saved, _)| begun(saved)).count() > 3, "hardly a turn went over a swap");
    for (first, saved) in states.into_iter().enumerate().skip(1) {
        let (rest, ..) = go_on(first as u64, Some(saved));
        assert!(rest == whole[first..], "left before step {first}");
    }
}

#[test]
fn what_fails_twice_takes_its_group_with_it() {
    let config = config(8, 1, 2);
    let environment = Environment::new(&config).unwrap();
    let stage = stage(&config, &environment, &environment.rules, places(&config), &|| 0, 0);
    let mut ahead = Ahead::new(&config, &environment, &stage);
    let mut slow = Slow::new(&environment, 0, BTreeSet::new());
    ahead.admit(0);
    let first = environment.training_specs(&config, 0)[0].stream_id;
    while !ahead.done.contains_key(&first) {
        for open in slow.open.iter_mut().filter(|open| open.who.episode == first) {
            open.turn.end = TurnEnd::Failed("down for good".to_owned());
        }
        for (number, record) in ahead.rollout.tick(&mut slow).unwrap() {
            ahead.over(number, record).unwrap();
        }
    }
    ahead.until(0, &mut slow, &mut quiet).unwrap();
    let batch = ahead.take(0).unwrap();
    assert_eq!((batch.groups, batch.dropped_groups, batch.records.len()), (2, 1, 6));
    assert!(batch.records[..3].iter().all(|record| record.scored.is_none()));
    assert!(ahead.again.iter().all(|number| *number >= 6), "{:?}", ahead.again);
}
