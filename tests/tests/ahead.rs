//! Async mode from outside: rollouts that are ahead of the learner have the same bits on any threads and after any
//! interruption, and no token is staler than the bound.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]

use std::fs;
use std::path::Path;

use parl_rollout::trajectory::log::TrajectoryLog;
use parl_rollout::trajectory::record::EpisodeRecord;
use parl_tests::tiny::{canonical, run, run_under, state, with_model};
use parl_tests::{Folder, root};
use serde_json::Value;

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn records(run: &Path) -> Vec<Vec<EpisodeRecord>> {
    let log = TrajectoryLog::new(run);
    (0..4).map(|step| log.read_step(step).unwrap()).collect()
}

/// Whether another version took over in the middle of one of the orchestrator's turns.
fn swapped_in_a_turn(record: &EpisodeRecord) -> bool {
    let branch = &record.branches[0];
    branch.policy_versions.iter().skip(1).any(|run| !branch.step_offsets.contains(&run.start))
}

fn with<'a>(variant: [&'a str; 3], more: &[&'a str]) -> Vec<&'a str> {
    [&["rollout.mode=async", "learner.objective={type: grpo}"], &variant[..], more].concat()
}

#[test]
fn a_run_ahead_has_its_bits_on_any_threads_and_after_any_interruption() {
    let folder = with_model();
    let one = ["rollout.max_staleness=2", "learner.updates_per_step=1", "rewards.toggle=null"];
    let toggle = "rewards.toggle={phase_steps: 1, estimate_steps: 2}";
    let two = ["rollout.max_staleness=5", "learner.updates_per_step=2", toggle];
    for (bound, variant) in [(2, one), (5, two)] {
        let whole = run_under(
            &folder,
            &[("RAYON_NUM_THREADS", "2")],
            "whole",
            &with(variant, &["--clean", "learner.threads=2"]),
        );
        assert_eq!(whole.code, 0, "{}", whole.err);
        let path = folder.join("whole");
        let (bits, rows) = (state(&path, 4), canonical(&path));

        let lines = metrics(&path);
        let most: Vec<u64> = lines.iter().map(|line| line["off_policy/max"].as_u64().unwrap()).collect();
        assert!(most[0] < most[1] && most.iter().all(|most| *most <= bound), "{most:?}");
        assert_eq!(most.iter().max(), Some(&bound), "nothing makes use of the bound: {most:?}");
        assert!(lines[3]["optim/grad_norm"].as_f64().unwrap() > 1e-3, "nothing to learn from: {}", lines[3]);
        let updates = bound.div_ceil(3);
        let mut swapped = 0;
        for (step, records) in (0..).zip(records(&path)) {
            for record in &records {
                let runs = &record.branches[0].policy_versions;
                let versions = || runs.iter().map(|run| run.version);
                assert_eq!(versions().min(), Some(record.policy_version_min));
                assert_eq!(versions().max(), Some(record.policy_version_max));
                let trained = updates * (step + 1) - 1;
                assert!(record.policy_version_min + bound >= trained, "step {step}: {runs:?}");
                swapped += usize::from(swapped_in_a_turn(record));
            }
        }
        assert!(swapped > 0, "no turn went on over an update");

        let again = run_under(
            &folder,
            &[("RAYON_NUM_THREADS", "1")],
            "again",
            &with(variant, &["--clean", "learner.threads=1"]),
        );
        assert_eq!(again.code, 0, "{}", again.err);
        assert!(state(&folder.join("again"), 4) == bits && canonical(&folder.join("again")) == rows);

        for at in 1..4 {
            let stop = format!("run.stop_after_steps={at}");
            let first = run(&folder, "parts", &with(variant, &["--clean", &stop, "learner.threads=1"]));
            assert!(first.code == 0 && first.out.contains(&format!("stopped after step {at}")), "{first:?}");
            let second = run(&folder, "parts", &with(variant, &["--resume", "learner.threads=1"]));
            assert_eq!(second.code, 0, "{}", second.err);
            assert_eq!(state(&folder.join("parts"), 4), bits, "weights, stopped at {at}");
            assert_eq!(canonical(&folder.join("parts")), rows, "rows, stopped at {at}");
        }
    }
}

/// Each step's episodes have that step's sub-agents though two steps' are under way at once; what a model has begun for
/// a script, or for another model, is gone on with.
#[test]
fn sub_agents_that_are_models_are_gone_on_with_and_relieved_by_step() {
    let folder = Folder::new().unwrap();
    let first = root().join("configs/warm_start").display().to_string();
    let init = format!("sft.init={first}");
    let other = ["sft", "--out", "other", &init, "sft.steps=2", "sft.episodes_per_step=1"];
    assert_eq!(folder.trainer(&other).unwrap().code, 0);
    let subagents = [
        format!("rollout.subagent.policy={{type: local, model: {first}, temperature: 0.6}}"),
        "rollout.subagent.later=[{from_step: 2, policy: {type: local, model: other, temperature: 0.6}}]"
            .to_owned(),
    ];
    let script = "{type: scripted, script: parallel}".to_owned();
    let model = format!("{{type: local, model: {first}, temperature: 1.0}}");
    for (name, orchestrator) in [("script", script), ("model", model)] {
        let orchestrator = format!("rollout.orchestrator.policy={orchestrator}");
        let run = |name: &str, more: &[&str]| {
            let fixed =
                ["run", "--run-dir", name, "run.final_eval_tasks=0", "run.max_steps=4", &orchestrator];
            let small = ["rollout.mode=async", "rollout.tasks_per_step=2", "rollout.group_size=3"];
            let seats = subagents.each_ref().map(String::as_str);
            folder.trainer(&[&fixed[..], &small, &seats, more].concat()).unwrap()
        };
        let whole = run(name, &[]);
        assert_eq!(whole.code, 0, "{}", whole.err);
        let path = folder.join(name);
        let records = records(&path);
        if name == "script" {
            let who = |step: usize| {
                let agents = records[step].iter().flat_map(|r| &r.agents).filter(|a| a.agent_idx > 0);
                let mut names: Vec<&str> = agents.map(|a| a.policy.as_str()).collect();
                names.sort_unstable();
                names.dedup();
                names
            };
            let [early, late] = [who(1), who(2)];
            assert!(early.len() == 1 && late.len() == 1 && early != late, "{early:?} {late:?}");
            assert!(who(0) == early && who(3) == late);
        } else {
            assert!(records.iter().flatten().any(|r| r.policy_version_min < r.policy_version_max));
        }
        for at in ["1", "2", "3"] {
            let parts = folder.join("parts");
            assert_eq!(run("parts", &["--clean", &format!("run.stop_after_steps={at}")]).code, 0);
            let resumed = run("parts", &["--resume"]);
            assert_eq!(resumed.code, 0, "{}", resumed.err);
            assert_eq!(canonical(&parts), canonical(&path), "stopped after {at}");
            assert!(name == "script" || state(&parts, 4) == state(&path, 4), "stopped after {at}");
        }
    }
}

#[test]
fn a_bound_without_effect_or_without_room_is_refused_by_its_name() {
    let folder = Folder::new().unwrap();
    let refused = |more: &[&str]| {
        let outcome = folder.trainer(&[&["run", "--run-dir", "r"][..], more].concat()).unwrap();
        assert!(outcome.code == 2 && !folder.join("r").exists(), "{outcome:?}");
        outcome.err
    };
    let error = refused(&["rollout.max_staleness=2"]);
    assert!(error.contains("rollout.max_staleness: 2 has no effect in sync mode"), "{error}");
    let error = refused(&["rollout.mode=async", "rollout.max_staleness=2", "learner.updates_per_step=2"]);
    assert!(error.contains("rollout.max_staleness: 2 is below 3"), "{error}");
    let error = refused(&["rollout.mode=async", "rollout.max_staleness=0"]);
    assert!(error.contains("rollout.max_staleness: 0 is below 1"), "{error}");
}
