//! Training from outside: a run that was stopped and gone on with is bit for bit one that was not, and damaged
//! checkpoints are found.

#![expect(clippy::disallowed_methods, reason = "clippy.toml: tests damage files as they like")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use parl_tests::tiny::{SMALL, TASKS, canonical, run, run_under, state, with_model};
use parl_tests::{Folder, root};
use serde_json::Value;

#[test]
fn a_run_interrupted_at_any_step_and_resumed_has_the_bits_of_one_that_was_not() {
    let folder = with_model();
    let grpo = ["learner.objective={type: grpo}", "learner.updates_per_step=1"];
    let muon = ["learner.muon={qk_clip: 100.0}", "learner.updates_per_step=2"];
    for [objective, updates] in [grpo, muon] {
        let whole = run(&folder, "whole", &["--clean", objective, updates, "learner.threads=2"]);
        assert_eq!(whole.code, 0, "{}", whole.err);
        let (bits, rows) = (state(&folder.join("whole"), 4), canonical(&folder.join("whole")));
        let metrics = fs::read_to_string(folder.join("whole/metrics.jsonl")).unwrap();
        let line: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        assert!(line["optim/grad_norm"].as_f64().unwrap() > 1e-3, "nothing to learn from: {line}");
        assert!(line["mismatch_kl/mean"].as_f64().unwrap() < 1e-6, "{line}");
        assert!(updates.ends_with(&format!("={}", line["optim/updates"])), "{line}");
        for at in 1..4 {
            let stop = format!("run.stop_after_steps={at}");
            let first = run(&folder, "parts", &["--clean", objective, updates, &stop, "learner.threads=1"]);
            assert!(first.code == 0 && first.out.contains(&format!("stopped after step {at}")), "{first:?}");
            let second = run(&folder, "parts", &[objective, updates, "--resume", "learner.threads=1"]);
            assert_eq!(second.code, 0, "{}", second.err);
            assert_eq!(state(&folder.join("parts"), 4), bits, "weights, stopped at {at}");
            assert_eq!(canonical(&folder.join("parts")), rows, "rows, stopped at {at}");
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_a_run_without_a_whole_one_is_refused() {
    let folder = with_model();
    let first = run(&folder, "r", &["run.stop_after_steps=3", "run.checkpoint_every=1"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let whole = run(&folder, "whole", &[]);
    assert_eq!(whole.code, 0, "{}", whole.err);
    let path = folder.join("r/checkpoints/step_000003/trainer_state.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();

    let eval = ["eval", "--tasks", "2", "--checkpoint", "r/checkpoints/step_000003"];
    let refused = folder.trainer(&eval).unwrap();
    assert!(refused.code == 4 && refused.err.contains("the file is damaged"), "{refused:?}");

    let resumed = run(&folder, "r", &["--resume"]);
    assert_eq!(resumed.code, 0, "{}", resumed.err);
    assert!(resumed.out.contains("passed over:") && resumed.out.contains("step_000003"), "{}", resumed.out);
    assert!(resumed.out.contains("from step 2 to 4"), "{}", resumed.out);
    assert_eq!(state(&folder.join("r"), 4), state(&folder.join("whole"), 4));
    assert!(folder.join("r/quarantine/attempt_1/checkpoints/step_000003").is_dir());

    // From one that is named; the log and the checkpoints after it are set aside.
    let named = run(&folder, "r", &["--resume=r/checkpoints/step_000002"]);
    assert!(named.code == 0 && named.out.contains("from step 2 to 4"), "{named:?}");
    assert_eq!(state(&folder.join("r"), 4), state(&folder.join("whole"), 4));
    assert!(folder.join("r/quarantine/attempt_2/checkpoints/step_000004").is_dir());
    assert!(folder.join("r/quarantine/attempt_2/tokens/step_000003").is_dir());
}

/// Files below `folder` whose writing was not finished.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.map(|entry| entry.path()).filter(|path| !path.is_symlink());
    below
        .flat_map(|path| if path.is_dir() { unfinished(&path) } else { vec![path] })
        .filter(|path| partial(path))
        .collect()
}

fn partial(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().ends_with(".tmp"))
}

#[test]
fn a_disk_that_is_full_at_any_operation_costs_nothing_but_time() {
    let folder = with_model();
    let disk = folder.join("full_disk.so");
    let source = root().join("tests/faults/full_disk.c").display().to_string();
    let compile = ["-shared", "-fPIC", "-O1", "-o", &disk.display().to_string(), &source, "-ldl"];
    let made = Command::new("cc").args(compile).status().unwrap();
    assert!(made.success(), "the C compiler refused {source}");
    let disk = disk.display().to_string();
    let more = ["run.max_steps=2", "run.checkpoint_every=1", "run.keep_last=1", "learner.threads=1"];

    let count = folder.join("count").display().to_string();
    let below = folder.join("whole").display().to_string();
    let counting = [("LD_PRELOAD", disk.as_str()), ("FULL_DISK_BELOW", &below), ("FULL_DISK_COUNT", &count)];
    let whole = run_under(&folder, &counting, "whole", &more);
    assert_eq!(whole.code, 0, "{}", whole.err);
    let operations: u32 = fs::read_to_string(&count).unwrap().trim().parse().unwrap();
    assert!(operations > 100, "only {operations} operations: the disk is not in between");
    let bits = state(&folder.join("whole"), 2);

    let full_at = |at: u32| {
        let name = format!("run{at}");
        let path = folder.join(&name);
        let (below, number) = (path.display().to_string(), at.to_string());
        let full = [("LD_PRELOAD", disk.as_str()), ("FULL_DISK_BELOW", &below), ("FULL_DISK_AT", &number)];
        let failed = run_under(&folder, &full, &name, &more);
        assert_eq!(failed.code, 5, "full at {at}: {failed:?}");
        assert!(
            failed.err.contains(&name) && failed.err.contains("No space left"),
            "full at {at}: {failed:?}"
        );
        let says_how_much = failed.err.contains("this file needs") && failed.err.contains(" bytes");
        let of_bytes = failed.err.contains("cannot write") || failed.err.contains("cannot append");
        assert!(says_how_much || !of_bytes, "full at {at}: {failed:?}");
        assert_eq!(unfinished(&path), [] as [PathBuf; 0], "full at {at}: {failed:?}");
        // With room again the run goes on, or begins where it had not begun. (Not after each: a run takes a while.)
        if at % 4 > 1 {
            fs::remove_dir_all(&path).unwrap();
            return true;
        }
        let resumed = run(&folder, &name, &[&more[..], &["--resume"]].concat());
        let begun = resumed.code == 0;
        let again = if begun { resumed } else { run(&folder, &name, &[&more[..], &["--clean"]].concat()) };
        assert_eq!(again.code, 0, "full at {at}: {failed:?}, then {again:?}");
        assert_eq!(state(&path, 2), bits, "full at {at}");
        fs::remove_dir_all(&path).unwrap();
        begun
    };
    // Two at once: most of a run's time is its start.
    let begun: Vec<bool> = thread::scope(|scope| {
        let half =
            |odd: u32| move || (1..=operations).filter(|at| at % 2 == odd).map(full_at).collect::<Vec<_>>();
        let (odd, even) = (scope.spawn(half(1)), scope.spawn(half(0)));
        [odd.join().unwrap(), even.join().unwrap()].concat()
    });
    let lost = begun.iter().filter(|begun| !**begun).count();
    assert!(lost < 10, "{lost} of {operations} places leave a run that cannot be gone on with");
}

#[test]
fn a_greedy_orchestrator_cannot_be_trained() {
    let folder = with_model();
    let greedy = "rollout.orchestrator.policy.temperature=0.0";
    let refused = run(&folder, "r", &[greedy]);
    assert!(refused.code == 2 && refused.err.contains("temperature: 0 is greedy"), "{refused:?}");
    assert!(!folder.join("r").exists());
}

#[test]
fn eval_takes_a_run_s_newest_model() {
    let folder = with_model();
    assert_eq!(run(&folder, "r", &["run.max_steps=1"]).code, 0);
    let eval = |of: &str| {
        let fixed = ["eval", "--json", "--tasks", "3", "--checkpoint", of];
        folder.trainer(&[&fixed[..], &TASKS, &SMALL].concat()).unwrap()
    };
    let (of_run, of_step) = (eval("r"), eval("r/checkpoints/latest"));
    assert_eq!((of_run.code, &of_run.out), (0, &of_step.out), "{of_run:?}");
    let summary: Value = serde_json::from_str(&of_run.out).unwrap();
    assert_eq!(summary["all"]["episodes"], 3);
}

#[test]
fn the_smoke_run_trains_the_shipped_model_and_shows_start_and_end() {
    let folder = Folder::new().unwrap();
    let config = root().join("configs/smoke.yaml").display().to_string();
    let run = folder.trainer(&["run", "--config", &config, "--run-dir", "r"]).unwrap();
    assert_eq!(run.code, 0, "{}", run.err);
    for row in ["start ", "end ", "serial expert, budget lifted ", "parallel expert "] {
        assert!(run.out.contains(&format!("\n{row}")), "{row}: {}", run.out);
    }
    let metrics = fs::read_to_string(folder.join("r/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let kl = line["mismatch_kl/mean"].as_f64().unwrap();
        assert!((0.0..1e-6).contains(&kl), "the engine and the learner disagree: {line}");
    }
    let success: f64 = lines.iter().map(|line| line["success/mean"].as_f64().unwrap()).sum();
    assert!(success > 0.2, "the shipped model can do nothing: {lines:?}");
    assert_eq!(lines[3]["parl/lambda_parallel"], 0.0);
    let ends: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("r/final_eval.json")).unwrap()).unwrap();
    assert_eq!(ends[0]["name"], "start");
    assert!(folder.join("r/checkpoints/latest/hf/model.safetensors").is_file());
}
