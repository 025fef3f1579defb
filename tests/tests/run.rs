//! The real binary: a whole run, going on with it, and what it says when it may not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]
#![expect(clippy::disallowed_methods, reason = "clippy.toml: tests write and damage files as they like")]

use std::fs;
use std::path::Path;

use parl_rollout::tasks::Split;
use parl_rollout::trajectory::log::TrajectoryLog;
use parl_tests::{Folder, root};
use serde_json::Value;

fn manifest(run: &Path, step: u32) -> Value {
    let path = run.join(format!("trajectories/v1/manifests/step_{step:06}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn canonical(run: &Path) -> Vec<String> {
    (0..4).map(|step| manifest(run, step)["canonical_blake3"].as_str().unwrap().to_owned()).collect()
}

fn config() -> String {
    root().join("configs/scripted.yaml").display().to_string()
}

#[test]
fn a_run_that_was_stopped_and_gone_on_with_has_the_rows_of_one_that_was_not() {
    let folder = Folder::new().unwrap();
    let config = config();
    let run = |name: &str, more: &[&str]| {
        let fixed = ["run", "--config", &config, "--run-dir", name, "run.final_eval_tasks=0"];
        folder.trainer(&[&fixed[..], more].concat()).unwrap()
    };
    let whole = run("whole", &["run.max_steps=4"]);
    assert_eq!(whole.code, 0, "{}", whole.err);
    assert_eq!(whole.out.lines().filter(|l| l.starts_with("step ")).count(), 4 + 2, "{}", whole.out);

    assert_eq!(run("parts", &["run.max_steps=2"]).code, 0);
    // A crash after step 2: a metrics line that was torn, a segment without a manifest.
    let parts = folder.join("parts");
    let metrics = fs::read_to_string(parts.join("metrics.jsonl")).unwrap();
    fs::write(parts.join("metrics.jsonl"), format!("{metrics}{{\"step\":2,\"a\":1}}\n{{\"st")).unwrap();
    let orphan = parts.join("trajectories/v1/tokens/step_000002");
    fs::create_dir_all(&orphan).unwrap();
    fs::write(orphan.join("part-r0000-000.parquet"), "half").unwrap();
    let again = run("parts", &["run.max_steps=4"]);
    assert!(again.code == 2 && again.err.contains("--resume"), "{again:?}");
    let resumed = run("parts", &["run.max_steps=4", "--resume"]);
    assert_eq!(resumed.code, 0, "{}", resumed.err);

    assert_eq!(canonical(&folder.join("whole")), canonical(&parts));
    assert_eq!(
        (manifest(&parts, 1)["attempt"].as_u64(), manifest(&parts, 2)["attempt"].as_u64()),
        (Some(0), Some(1))
    );
    let steps: Vec<u64> = fs::read_to_string(parts.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 1, 2, 3]);
    assert!(parts.join("quarantine/attempt_1/tokens/step_000002").is_dir());

    let other = run("parts", &["run.max_steps=5", "run.seed=9", "--resume"]);
    assert!(other.code == 2 && other.err.contains("run.seed is 0 in the run and 9 now"), "{}", other.err);
}

#[test]
fn sub_agents_are_relieved_at_their_step_and_after_a_resume_too() {
    let folder = Folder::new().unwrap();
    let first = root().join("configs/warm_start").display().to_string();
    let init = format!("sft.init={first}");
    let other = ["sft", "--out", "other", &init, "sft.steps=2", "sft.episodes_per_step=1"];
    assert_eq!(folder.trainer(&other).unwrap().code, 0);
    let subagent = |model: &str| format!("{{type: local, model: {model}, temperature: 0.6}}");
    let seats = [
        "rollout.orchestrator.policy={type: scripted, script: parallel}".to_owned(),
        format!("rollout.subagent.policy={}", subagent(&first)),
        format!("rollout.subagent.later=[{{from_step: 2, policy: {}}}]", subagent("other")),
    ];
    let seats: Vec<&str> = seats.iter().map(String::as_str).collect();
    let run = |name: &str, more: &[&str]| {
        let fixed = ["run", "--run-dir", name, "run.final_eval_tasks=0", "run.max_steps=4"];
        let small = ["rollout.tasks_per_step=2", "rollout.group_size=1"];
        folder.trainer(&[&fixed[..], &small, &seats, more].concat()).unwrap()
    };
    let whole = run("whole", &[]);
    assert_eq!(whole.code, 0, "{}", whole.err);
    let log = TrajectoryLog::new(&folder.join("whole"));
    let who = |step: u32| {
        let records = log.read_step(step).unwrap();
        let agents = records.iter().flat_map(|r| &r.agents).filter(|a| a.agent_idx > 0);
        let mut names: Vec<String> = agents.map(|a| a.policy.clone()).collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!((who(0).len(), who(3).len()), (1, 1));
    assert!(who(0) == who(1) && who(2) == who(3) && who(1) != who(2), "{:?} {:?}", who(1), who(2));

    for at in ["1", "2", "3"] {
        assert_eq!(run("parts", &["--clean", &format!("run.stop_after_steps={at}")]).code, 0);
        let resumed = run("parts", &["--resume"]);
        assert_eq!(resumed.code, 0, "{}", resumed.err);
        assert_eq!(canonical(&folder.join("parts")), canonical(&folder.join("whole")), "stopped after {at}");
    }
    let unordered = format!(
        "rollout.subagent.later=[{{from_step: 2, policy: {0}}}, {{from_step: 2, policy: {0}}}]",
        subagent("other")
    );
    let refused = run("never", &[&unordered]);
    assert!(
        refused.code == 2 && refused.err.contains("rollout.subagent.later[1].from_step"),
        "{}",
        refused.err
    );
    assert!(!folder.join("never").exists());
}

#[test]
fn budgets_of_tokens_are_the_same_wherever_a_run_was_stopped() {
    let folder = Folder::new().unwrap();
    let config = config();
    let run = |name: &str, more: &[&str]| {
        let fixed =
            ["run", "--config", &config, "--run-dir", name, "run.final_eval_tasks=0", "run.max_steps=6"];
        let some = ["rollout.tasks_per_step=12", "rollout.group_size=6", "rollout.subagent.outage_rate=0.3"];
        // Steps 0 to 2 are measured, 4 and 5 are bound.
        let toggle = "rewards.toggle={estimate_steps: 3, phase_steps: 2, percentile: 0.4, mean_limit: 0.3}";
        let outcome = folder.trainer(&[&fixed[..], &some, &[toggle], more].concat()).unwrap();
        assert_eq!(outcome.code, 0, "{}", outcome.err);
    };
    let rows = |name: &str| -> Vec<String> {
        let hash = |step| manifest(&folder.join(name), step)["canonical_blake3"].as_str().unwrap().to_owned();
        (0..6).map(hash).collect()
    };
    run("whole", &[]);
    let metrics = fs::read_to_string(folder.join("whole/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let told = |key: &str| -> Vec<f64> { lines.iter().map(|line| line[key].as_f64().unwrap()).collect() };
    assert_eq!(told("parl/budget_binds"), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    let taken: Vec<bool> = told("parl/r_budget/mean").iter().map(|mean| *mean < 0.0).collect();
    assert_eq!(taken, [false, false, false, false, true, true], "{metrics}");
    for at in ["1", "3", "5"] {
        run("parts", &["--clean", &format!("run.stop_after_steps={at}")]);
        run("parts", &["--resume"]);
        assert_eq!(rows("parts"), rows("whole"), "stopped at {at}");
    }
}

#[test]
fn another_seed_is_another_run_and_thread_counts_change_nothing() {
    let folder = Folder::new().unwrap();
    let config = config();
    let run = |name: &str, seed: &str| {
        let arguments = [
            "run",
            "--config",
            &config,
            "--run-dir",
            name,
            "run.max_steps=4",
            "run.final_eval_tasks=0",
            seed,
        ];
        assert_eq!(folder.trainer(&arguments).unwrap().code, 0);
        canonical(&folder.join(name))
    };
    let (a, b) = (run("a", "run.seed=0"), run("b", "run.seed=1"));
    assert_eq!(a, run("c", "run.seed=0"));
    assert!(a.iter().zip(&b).all(|(a, b)| a != b));
}

#[test]
fn damage_is_found_before_a_run_goes_on() {
    let folder = Folder::new().unwrap();
    let config = config();
    let fixed = ["run", "--config", &config, "--run-dir", "r", "run.final_eval_tasks=0"];
    assert_eq!(folder.trainer(&[&fixed[..], &["run.max_steps=2"]].concat()).unwrap().code, 0);
    let path = folder.join("r/trajectories/v1/steps/step_000001/part-r0000-000.parquet");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let resumed = folder.trainer(&[&fixed[..], &["run.max_steps=4", "--resume"]].concat()).unwrap();
    assert_eq!(resumed.code, 4);
    assert!(
        resumed.err.contains("steps/step_000001/part-r0000-000.parquet: the file is damaged"),
        "{}",
        resumed.err
    );
}

#[test]
fn mistakes_are_one_line_and_write_nothing() {
    let folder = Folder::new().unwrap();
    let bad = folder.file("bad.yaml", "run:\n  seeed: 1\n").unwrap();
    let rows = folder
        .file("tasks.jsonl", "{\"id\": \"a\", \"prompt\": \"p\", \"answer\": 1, \"metric\": \"f2\"}\n")
        .unwrap();
    let corpus =
        folder.file("corpus.jsonl", "{\"doc_id\": \"1\", \"title\": \"t\", \"text\": \"x\"}\n").unwrap();
    let (rows_key, corpus_key) = (format!("tasks.tasks={rows}"), format!("tasks.corpus={corpus}"));
    let dataset = ["run", "--run-dir", "r", "tasks.type=dataset"];
    let with = |more: &[&'static str]| more.to_vec();
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (
            vec!["run", "--config", &bad, "--run-dir", "r"],
            2,
            "bad.yaml:2:3: run.seeed: unknown key; did you mean `seed`?",
        ),
        (with(&["run", "--config", "none.yaml", "--run-dir", "r"]), 2, "none.yaml: cannot read"),
        (with(&["run", "--run-dir", "r", "rewards.n_cap=0"]), 2, "override #1: rewards.n_cap: 0 is below 1"),
        (
            with(&["run", "--run-dir", "r", "--rewards.n_cap=0"]),
            2,
            "override #1: rewards.n_cap: 0 is below 1",
        ),
        (with(&["run", "--run-dir", "r", "--resume"]), 2, "there is no run to resume"),
        (
            [
                &dataset[..],
                &[
                    "tasks.name=d",
                    &rows_key,
                    &corpus_key,
                    "tasks.heldout_fraction=0.2",
                    "tasks.document_ids=row",
                ],
            ]
            .concat(),
            4,
            "tasks.jsonl:1: ",
        ),
        (with(&["eval", "--policy", "parralel"]), 2, "unknown variant `parralel`"),
        (with(&["runn"]), 2, "unrecognized subcommand"),
    ];
    for (arguments, code, wanted) in cases {
        let outcome = folder.trainer(&arguments).unwrap();
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.err);
        assert!(outcome.err.contains(wanted), "{arguments:?}: {}", outcome.err);
        assert!(!folder.join("r").exists(), "{arguments:?} wrote something");
    }
}

#[test]
fn evaluated_episodes_can_be_kept_and_read_as_a_run() {
    let folder = Folder::new().unwrap();
    let kept = folder.join("kept");
    let place = kept.to_str().unwrap();
    let eval = ["eval", "--policy", "parallel", "--tasks", "5", "--run-dir", place];
    let outcome = folder.trainer(&eval).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let log = TrajectoryLog::new(&kept);
    let records = log.read_step(0).unwrap();
    assert_eq!(records.len(), 5);
    assert!(records.iter().all(|r| r.split == Split::Heldout && r.scored.is_some()));
    let shown = folder.trainer(&["show", place, "--episode", &records[4].episode_id]).unwrap();
    assert_eq!(shown.code, 0, "{}", shown.err);
    let again = folder.trainer(&eval).unwrap();
    assert_eq!(again.code, 2, "{}", again.err);
    assert!(again.err.contains("holds a run already; name another folder"), "{}", again.err);
}

#[test]
fn experts_are_told_apart_by_the_budget() {
    let folder = Folder::new().unwrap();
    let figures = |more: &[&str]| -> Value {
        let fixed = ["eval", "--tasks", "200", "--json", "rollout.subagent.outage_rate=0.02"];
        let outcome = folder.trainer(&[&fixed[..], more].concat()).unwrap();
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        serde_json::from_str(&outcome.out).unwrap()
    };
    let number = |v: &Value, path: &str| v.pointer(path).and_then(Value::as_f64).unwrap();
    let parallel = figures(&["--policy", "parallel"]);
    let serial = figures(&["--policy", "serial"]);
    let lifted = figures(&["--policy", "serial", "--lift-budget"]);
    assert!(number(&parallel, "/all/success") > 0.98);
    assert!(number(&serial, "/all/success") < 0.75);
    assert!(number(&serial, "/by_n/wide n>=8/success") < 0.05, "many items do not fit the budget alone");
    assert!(number(&lifted, "/all/success") > 0.99);
    let ratio = number(&lifted, "/by_n/wide n>=8/critical_steps")
        / number(&parallel, "/by_n/wide n>=8/critical_steps");
    assert!(ratio > 3.0, "{ratio}");
    assert!(number(&parallel, "/by_kind/deep/agents") < 1e-9);
}

#[test]
fn human_decompositions_solve_real_questions() {
    let data = root().join("../shared/data/fanoutqa");
    if !data.is_dir() {
        println!("skipped: the FanOutQA files are not here");
        return;
    }
    let folder = Folder::new().unwrap();
    let config = root().join("configs/fanoutqa.yaml").display().to_string();
    let path = |name: &str| {
        format!(
            "tasks.{name}={}",
            data.join(format!("{}.jsonl", if name == "tasks" { "tasks" } else { "corpus" })).display()
        )
    };
    let arguments = [
        "eval",
        "--config",
        &config,
        "--tasks",
        "1000",
        "--json",
        "tasks.heldout_fraction=1.0",
        &path("tasks"),
        &path("corpus"),
    ];
    let outcome = folder.trainer(&arguments).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    let figures: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(figures["all"]["episodes"], 257);
    assert!(figures["all"]["r_perf"].as_f64().unwrap() >= 0.9, "{figures}");
}

#[test]
fn a_warm_start_is_made_again_bit_for_bit_and_draws_in_both_seats() {
    let folder = Folder::new().unwrap();
    let small = ["sft.steps=3", "sft.episodes_per_step=6", "sft.hidden=64", "sft.layers=1"];
    let contexts = ["rollout.orchestrator.max_context_tokens=700", "rollout.subagent.max_context_tokens=200"];
    for name in ["a", "b"] {
        // Another number of workers must not change a bit.
        let threads = if name == "a" { "sft.threads=1" } else { "sft.threads=2" };
        let made =
            folder.trainer(&[&["sft", "--out", name, threads][..], &small, &contexts].concat()).unwrap();
        assert_eq!(made.code, 0, "{}", made.err);
    }
    let weights = |name: &str| fs::read(folder.join(name).join("model.safetensors")).unwrap();
    assert!(weights("a") == weights("b"), "the warm start depends on the number of workers");

    let local = "{type: local, model: a, temperature: 1.0}";
    let seats = [format!("rollout.orchestrator.policy={local}"), format!("rollout.subagent.policy={local}")];
    let run = |name: &str| {
        let fixed =
            ["run", "--run-dir", name, "run.max_steps=4", "run.final_eval_tasks=0", "rollout.group_size=2"];
        let all = [&fixed[..], &contexts, &[&seats[0], &seats[1]]].concat();
        let outcome = folder.trainer(&all).unwrap();
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        canonical(&folder.join(name))
    };
    assert_eq!(run("one"), run("two"), "equal seeds draw equal tokens");

    // A damaged or foreign model is named, and nothing is written.
    let bytes = weights("a");
    fs::write(folder.join("a/model.safetensors"), &bytes[..bytes.len() - 8]).unwrap();
    let fixed = ["run", "--run-dir", "r", "run.max_steps=1"];
    let outcome = folder.trainer(&[&fixed[..], &contexts, &[&seats[0]]].concat()).unwrap();
    assert!(
        outcome.code == 4 && outcome.err.contains("a/model.safetensors: weights: not a safetensors file"),
        "{}",
        outcome.err
    );
    fs::write(folder.join("a/model.safetensors"), &bytes).unwrap();
    let outcome = folder.trainer(&[&fixed[..], &[&seats[0]]].concat()).unwrap();
    assert!(
        outcome.code == 2 && outcome.err.contains("2048 is above the model's 700 positions"),
        "{}",
        outcome.err
    );
    assert!(!folder.join("r").exists());
}
