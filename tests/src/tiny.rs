//! A tiny model and its tasks, to train it for a few steps.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, in its fixtures too"
)]

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{Folder, Outcome};

/// Short contexts keep an unskilled model's episodes short; word F1 against a long answer tells its babble apart.
pub const TASKS: [&str; 3] = ["tasks.type=dataset", "tasks.tasks=tasks.jsonl", "tasks.corpus=corpus.jsonl"];
/// A short run of few and short episodes.
pub const SMALL: [&str; 7] = [
    "rollout.tasks_per_step=2",
    "rollout.group_size=4",
    "rollout.orchestrator.max_new_tokens=24",
    "rollout.orchestrator.max_context_tokens=96",
    "rollout.orchestrator.max_turns=2",
    "rollout.subagent.policy={type: scripted, script: serial}",
    "run.max_steps=4",
];

/// A folder with tasks and a tiny model that has learned little more than to end its turns.
pub fn with_model() -> Folder {
    let folder = Folder::new().unwrap();
    let words =
        "the is in of has and a record as we know with its for no none guild members start document note";
    let row = |i: u32| {
        format!("{{\"id\": \"t{i}\", \"prompt\": \"n{i}\", \"answer\": \"{words}\", \"metric\": \"f1\"}}\n")
    };
    folder.file("tasks.jsonl", &(1..20).map(row).collect::<String>()).unwrap();
    folder.file("corpus.jsonl", "{\"doc_id\": \"1\", \"title\": \"t\", \"text\": \"x\"}\n").unwrap();
    let small =
        ["sft.steps=80", "sft.episodes_per_step=8", "sft.hidden=64", "sft.layers=1", "sft.drill_share=0.0"];
    let made = folder.trainer(&[&["sft", "--out", "model"][..], &small, &TASKS].concat()).unwrap();
    assert_eq!(made.code, 0, "{}", made.err);
    folder
}

/// Trains it, with more overrides.
pub fn run(folder: &Folder, name: &str, more: &[&str]) -> Outcome {
    run_under(folder, &[], name, more)
}

/// As [`run`], under more environment variables.
pub fn run_under(folder: &Folder, variables: &[(&str, &str)], name: &str, more: &[&str]) -> Outcome {
    let model = "rollout.orchestrator.policy={type: local, model: model, temperature: 1.0}";
    let fixed = ["run", "--run-dir", name, model, "run.final_eval_tasks=0"];
    folder.trainer_under(variables, &[&fixed[..], &TASKS, &SMALL, more].concat()).unwrap()
}

/// The bytes of the weights and of the optimizer after `step` steps.
pub fn state(run: &Path, step: u32) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step_{step:06}/trainer_state.safetensors"))).unwrap()
}

/// The canonical hashes of a run's four steps.
pub fn canonical(run: &Path) -> Vec<String> {
    (0..4)
        .map(|step| {
            let path = run.join(format!("trajectories/v1/manifests/step_{step:06}.json"));
            let manifest: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
            manifest["canonical_blake3"].as_str().unwrap().to_owned()
        })
        .collect()
}
