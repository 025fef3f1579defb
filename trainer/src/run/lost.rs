//! A run whose device fails on the way, as a card that falls off its bus does: every call from then on is an error.

use std::path::{Path, PathBuf};

use parl_kernels::KernelError;
use parl_kernels::weights::WeightSet;
use parl_rollout::engine::Begun;
use parl_rollout::policy::{AgentRef, Identity, TurnRequest};
use parl_rollout::swarm::{Moment, Turn};

use super::*;
use crate::checkpoint;
use crate::config::load;

/// The models of the config, on a device that does so many ticks and then no more.
struct Failing {
    inner: Box<dyn Policy>,
    ticks: u64,
}

impl Policy for Failing {
    fn identity(&self, seat: Seat, number: usize) -> Identity {
        self.inner.identity(seat, number)
    }

    fn submit(&mut self, request: TurnRequest<'_>) -> Result<(), RolloutError> {
        self.inner.submit(request)
    }

    fn cancel(&mut self, who: AgentRef) {
        self.inner.cancel(who);
    }

    fn tick(&mut self, now: Moment) -> Result<Vec<(AgentRef, Turn)>, RolloutError> {
        let lost = || KernelError::Cuda("cuStreamSynchronize failed: the device is lost".to_owned());
        self.ticks = self.ticks.checked_sub(1).ok_or_else(lost)?;
        self.inner.tick(now)
    }

    fn publish(&mut self, seat: Seat, weights: WeightSet) -> Result<(), RolloutError> {
        self.inner.publish(seat, weights)
    }

    fn give_back(&mut self, seat: Seat) {
        self.inner.give_back(seat);
    }

    fn forget(&mut self) {
        self.inner.forget();
    }

    fn under_way(&self) -> Vec<(AgentRef, Begun)> {
        self.inner.under_way()
    }

    fn set_temperature(&mut self, seat: Seat, temperature: f32) {
        self.inner.set_temperature(seat, temperature);
    }
}

const STEPS: u64 = 4;

fn config(mode: &str) -> Loaded<Config> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/warm_start");
    let seat = |seat: &str| {
        format!("rollout.{seat}.policy={{type: local, model: {}, temperature: 1.0}}", model.display())
    };
    let settings = [
        seat("orchestrator"),
        seat("subagent"),
        format!("rollout.mode={mode}"),
        format!("run.max_steps={STEPS}"),
        "run.device=cpu".to_owned(),
        "run.checkpoint_every=1".to_owned(),
        "run.final_eval_tasks=0".to_owned(),
        "rollout.tasks_per_step=2".to_owned(),
        "rollout.group_size=2".to_owned(),
    ];
    load(Vec::new(), &settings, &|_| None).unwrap()
}

fn newest(folder: &Path) -> u64 {
    let (found, faults) = Checkpoints::new(folder).newest().unwrap();
    assert!(faults.is_empty(), "{faults:?}");
    found.map_or(0, |checkpoint| checkpoint.state.step)
}

fn learned(folder: &Path) -> Option<Vec<u8>> {
    checkpoint::read(&folder.join(format!("checkpoints/step_{STEPS:06}"))).unwrap().learner
}

#[test]
fn a_lost_device_ends_a_run_whose_last_checkpoint_is_gone_on_from_on_another() {
    for mode in ["sync", "async"] {
        let loaded = config(mode);
        let root = std::env::temp_dir().join(format!("parl-lost-{mode}-{}", std::process::id()));
        let attempt = |name: &str, used: Used, ticks: u64| {
            let folder: PathBuf = root.join(name);
            let options = Options { folder, used, checkpoint: None, terminal: false };
            let seats = |environment: &Environment, config: &Config| {
                let seats = seats::configured(environment, config)?;
                Ok(Seats { policy: Box::new(Failing { inner: seats.policy, ticks }), ..seats })
            };
            run_with(&loaded, &options, &mut std::io::sink(), seats)
        };
        attempt("whole", Used::Clean, u64::MAX).unwrap();
        let wanted = learned(&root.join("whole"));
        assert!(wanted.is_some());
        let (mut ticks, mut seen) = (40, Vec::new());
        loop {
            let folder = root.join("lost");
            let Err(error) = attempt("lost", Used::Clean, ticks) else { break };
            assert_eq!(error.exit_code(), 1, "{error}");
            assert!(error.to_string().contains("the device is lost"), "{error}");
            let at = newest(&folder);
            // Once at each checkpoint: what there is by then is whole.
            if !seen.contains(&at) {
                seen.push(at);
                attempt("lost", Used::Resume, u64::MAX).unwrap();
                assert_eq!(learned(&folder), wanted, "{mode}, lost after {ticks} ticks, checkpoint {at}");
            }
            ticks += ticks / 5;
        }
        assert!(seen.contains(&0) && seen.iter().any(|&at| at > 0), "{mode}: {seen:?}");
        std::fs::remove_dir_all(root).unwrap();
    }
}
