//! `trainer export`, `show` and `runs` on small runs of scripts: what they write and print, and what they refuse.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]
#![expect(clippy::disallowed_methods, reason = "clippy.toml: tests write and damage files as they like")]

use std::fs::{self, File};
use std::path::Path;

use parl_tests::{Folder, root};
use serde_json::Value;

fn run(folder: &Folder, name: &str, more: &[&str]) {
    let config = root().join("configs/scripted.yaml").display().to_string();
    let fixed = ["run", "--config", &config, "--run-dir", name, "run.final_eval_tasks=0", "run.max_steps=3"];
    let outcome = folder.trainer(&[&fixed[..], more].concat()).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

/// Paths of all files below `folder`, in order.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

fn json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_format_has_every_episode_and_only_what_was_asked_for() {
    let folder = Folder::new().unwrap();
    run(&folder, "r", &[]);
    let export = |format: &str, more: &[&str]| {
        folder.trainer(&[&["export", "r", "--format", format][..], more].concat()).unwrap()
    };
    for format in ["chrome-trace", "atif", "trl-parquet", "verifiers-jsonl"] {
        let outcome = export(format, &[]);
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        assert!(outcome.out.contains("of 3 steps in"), "{}", outcome.out);
    }
    let made = |format: &str| files(&folder.join("r/export").join(format));
    let trajectories = made("atif");
    let episodes = trajectories.len() / 3;
    assert!(episodes > 1 && trajectories.len() == 3 * episodes);
    assert!(trajectories.iter().any(|path| json(path).get("subagent_trajectories").is_some()));
    let lines: usize =
        made("verifiers-jsonl").iter().map(|path| fs::read_to_string(path).unwrap().lines().count()).sum();
    assert_eq!((made("verifiers-jsonl").len(), lines), (3, 3 * episodes));
    let traces = made("chrome-trace");
    let processes = |path: &String| {
        json(path)["traceEvents"].as_array().unwrap().iter().filter(|e| e["name"] == "process_name").count()
    };
    assert_eq!(traces.iter().map(processes).collect::<Vec<_>>(), [episodes; 3]);
    assert_eq!(made("trl-parquet").len(), 3);

    let id = Path::new(trajectories.last().unwrap()).file_stem().unwrap().to_str().unwrap();
    assert!(id.starts_with("s000002-"), "{id}");
    assert_eq!(export("atif", &["--episode", id, "--out", "one"]).code, 0);
    let one = files(&folder.join("one"));
    assert!(one.len() == 1 && one[0].ends_with(&format!("one/step_000002/{id}.json")), "{one:?}");
    assert_eq!(export("trl-parquet", &["--steps", "1..", "--out", "late"]).code, 0);
    assert_eq!(files(&folder.join("late")).len(), 2);

    let refused = |more: &[&str], wanted: &str| {
        let outcome = export("atif", &[more, &["--out", "none"]].concat());
        assert!(outcome.code == 2 && outcome.err.contains(wanted), "{more:?}: {outcome:?}");
        assert!(!folder.join("none").exists(), "{more:?} wrote something");
    };
    refused(&["--steps", "7"], "--steps 7..8: its sealed steps are 0 to 2");
    refused(&["--steps", "2..2"], "no step is in 2..2");
    refused(&["--episode", "s000002-g9999-e0000"], "no selected step has an episode `s000002-g9999-e0000`");
    refused(&["--episode", id, "--steps", "..2"], "no selected step has an episode");
    let outcome = folder.trainer(&["export", "nowhere", "--format", "atif"]).unwrap();
    assert!(outcome.code == 2 && outcome.err.contains("nowhere: is not a folder"), "{}", outcome.err);
    let outcome = folder.trainer(&["export", "r", "--format", "csv"]).unwrap();
    assert!(outcome.code == 2 && outcome.err.contains("trl-parquet"), "{}", outcome.err);
}

#[test]
fn an_episode_is_shown_as_a_tree_within_the_width() {
    let folder = Folder::new().unwrap();
    run(&folder, "r", &["run.max_steps=1"]);
    let show = |more: &[&str]| folder.trainer(&[&["show", "r"][..], more].concat()).unwrap();
    let table = show(&[]);
    assert_eq!(table.code, 0, "{}", table.err);
    let first = table.out.lines().find(|line| line.starts_with("s000000-g0000-e0000")).unwrap();
    assert!(first.contains("  yes  ") || first.contains("  no  "), "{first}");
    let tree = show(&["--episode", "s000000-g0000-e0000", "--width", "60"]);
    assert_eq!(tree.code, 0, "{}", tree.err);
    assert!(
        tree.out.contains("stage 0") && tree.out.contains("└─ ") && tree.out.contains("\nanswer"),
        "{}",
        tree.out
    );
    assert!(tree.out.lines().all(|line| line.chars().count() <= 60), "{}", tree.out);
    assert!(!tree.out.contains('\u{1b}'), "no colours where there is no terminal");
    let shared = show(&["--episode", "s000000-g0000"]);
    assert!(shared.code == 2 && shared.err.contains("more than one episode begins with"), "{}", shared.err);
    let none = show(&["--episode", "s000009"]);
    assert!(none.code == 2 && none.err.contains("no sealed step has an episode `s000009`"), "{}", none.err);
}

#[test]
fn runs_are_found_at_any_depth_with_their_state() {
    let folder = Folder::new().unwrap();
    run(&folder, "runs/a", &["run.name=a"]);
    run(&folder, "runs/deep/er/b", &["run.stop_after_steps=1"]);
    fs::create_dir_all(folder.join("runs/no run")).unwrap();
    let list = || -> Vec<(String, Value)> {
        let outcome = folder.trainer(&["runs", "--json"]).unwrap();
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        let runs: Value = serde_json::from_str(&outcome.out).unwrap();
        let path = |run: &Value| run["path"].as_str().unwrap().to_owned();
        runs.as_array().unwrap().iter().map(|run| (path(run), run.clone())).collect()
    };
    let states =
        || list().into_iter().map(|(_, run)| run["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let runs = list();
    assert_eq!(runs.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["runs/a", "runs/deep/er/b"]);
    assert_eq!(states(), ["finished", "stopped"]);
    assert_eq!(
        (&runs[0].1["name"], &runs[0].1["steps"], &runs[1].1["steps"]),
        (&"a".into(), &3.into(), &1.into())
    );
    assert!(runs[0].1["success"].as_f64().unwrap() > 0.0 && runs[0].1["lambda_parallel"].is_f64());

    let lock = File::open(folder.join("runs/a/lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(states(), ["running", "stopped"]);
    drop(lock);
    let table = folder.join("runs/deep/er/b/trajectories/v1/steps/step_000000/part-r0000-000.parquet");
    fs::write(&table, "short").unwrap();
    assert_eq!(states(), ["finished", "damaged"]);
    let text = folder.trainer(&["runs"]).unwrap();
    assert_eq!(text.code, 0, "one damaged run does not hide the others");
    assert!(text.out.contains("runs/a") && text.out.contains("the file is damaged"), "{}", text.out);
    let outcome = folder.trainer(&["runs", "elsewhere"]).unwrap();
    assert!(
        outcome.code == 2 && outcome.err.contains("elsewhere: there is no such folder"),
        "{}",
        outcome.err
    );
}
