//! Sinks of the real binary: a run does not depend on them, and they can be made again afterwards.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]
#![expect(clippy::disallowed_methods, reason = "clippy.toml: tests write and damage files as they like")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use parl_tests::{Folder, Outcome, root};

fn run(folder: &Folder, more: &[&str]) -> Outcome {
    let config = root().join("configs/scripted.yaml").display().to_string();
    let small =
        ["rollout.tasks_per_step=2", "rollout.group_size=2", "run.final_eval_tasks=0", "run.max_steps=4"];
    let fixed = ["run", "--config", &config, "--run-dir", "r", "tracking.sinks=[tensorboard, wandb]"];
    folder.trainer(&[&fixed[..], &small, more].concat()).unwrap()
}

/// Names and contents of all files below a folder.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_backfill_makes_what_the_run_made_as_often_as_it_is_called() {
    let folder = Folder::new().unwrap();
    assert_eq!(run(&folder, &[]).code, 0);
    let sinks = || ["tensorboard", "wandb"].map(|name| contents(&folder.join("r").join(name)));
    let made = sinks();
    assert!(made.iter().all(|files| files.len() == 1), "{:?}", made.each_ref().map(BTreeMap::keys));
    for _ in 0..2 {
        let again = folder.trainer(&["track", "r", "--backfill"]).unwrap();
        assert_eq!((again.code, again.out.lines().count()), (0, 2), "{again:?}");
        assert!(again.out.contains("tensorboard: 4 steps in r/tensorboard"), "{}", again.out);
        assert!(sinks() == made);
    }
    // Each attempt has an event file; a backfill leaves one.
    assert_eq!(run(&folder, &["--resume", "run.max_steps=6"]).code, 0);
    assert_eq!(sinks().map(|files| files.len()), [2, 1]);
    assert_eq!(folder.trainer(&["track", "r", "--backfill"]).unwrap().code, 0);
    assert_eq!(sinks().map(|files| files.len()), [1, 1]);
}

#[test]
fn a_run_goes_on_without_a_sink_that_cannot_write() {
    let folder = Folder::new().unwrap();
    assert_eq!(run(&folder, &["tracking.sinks=[]", "run.stop_after_steps=1"]).code, 0);
    // No folder can be made where a file is.
    fs::write(folder.join("r/tensorboard"), "in the way").unwrap();
    let gone_on = run(&folder, &["--resume"]);
    assert_eq!(gone_on.code, 0, "{}", gone_on.err);
    assert_eq!(gone_on.out.matches("tracking: tensorboard failed: ").count(), 1, "{}", gone_on.out);
    assert_eq!(fs::read_to_string(folder.join("r/metrics.jsonl")).unwrap().lines().count(), 4);
    // The other sink has all steps, that of the first launch too.
    let wandb = contents(&folder.join("r/wandb"));
    assert_eq!(wandb.len(), 1);
    let made = folder.trainer(&["track", "r", "--backfill", "tracking.sinks=[wandb]"]).unwrap();
    assert!(made.out.contains("wandb: 4 steps"), "{made:?}");
    let rows = |files: &BTreeMap<String, Vec<u8>>| files.values().map(Vec::len).sum::<usize>();
    assert!(rows(&contents(&folder.join("r/wandb"))).abs_diff(rows(&wandb)) < 32);
    fs::remove_file(folder.join("r/tensorboard")).unwrap();
    let told = folder.trainer(&["track", "r", "--backfill", "tracking.sinks=[tensorboard]"]).unwrap();
    assert!(told.out.contains("tensorboard: 4 steps"), "{told:?}");
}

#[test]
fn a_backfill_says_what_it_lacks() {
    let folder = Folder::new().unwrap();
    assert_eq!(run(&folder, &["tracking.sinks=[]"]).code, 0);
    let says = |arguments: &[&str], code: i32, wanted: &str| {
        let outcome = folder.trainer(arguments).unwrap();
        assert!(outcome.code == code && outcome.err.contains(wanted), "{arguments:?}: {outcome:?}");
    };
    says(&["track", "none", "--backfill"], 2, "none: holds no run of ours");
    says(&["track", "r", "--backfill"], 2, "the run's config names no sinks");
    says(
        &["track", "r", "--backfill", "tracking.sink=[wandb]"],
        2,
        "tracking.sink: unknown key; did you mean `sinks`?",
    );
    says(&["track", "r", "--backfill", "run.seed=1"], 2, "run: unknown key");
    says(&["track", "r"], 2, "--backfill");
    fs::write(folder.join("r/metrics.jsonl"), "{\"step\":0}\nnonsense\n").unwrap();
    says(&["track", "r", "--backfill", "tracking.sinks=[wandb]"], 4, "r/metrics.jsonl: line 2: ");
}
