//! The rules of the house: who may depend on whom, and what stands nowhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]

use std::fs;
use std::path::{Path, PathBuf};

use parl_tests::root;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | "runs") {
                sources(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn rust_files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&root(), &mut found);
    let relative = |p: &PathBuf| p.strip_prefix(root()).unwrap().display().to_string();
    let rust = found.iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    rust.map(|p| (relative(p), fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn crates_depend_downwards_only() {
    let allowed: [(&str, &[&str]); 5] = [
        ("kernels", &[]),
        ("rewards", &[]),
        ("rollout", &["kernels", "rewards"]),
        ("trainer", &["kernels", "rewards", "rollout"]),
        ("tests", &["kernels", "rewards", "rollout", "trainer"]),
    ];
    for (name, below) in allowed {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter_map(|l| l.trim().strip_prefix("parl-")) {
            let dependency = line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
            assert!(below.contains(&dependency), "{name} depends on {dependency}");
        }
    }
}

#[test]
fn each_library_has_one_room() {
    let rooms = [
        ("cudarc::", "kernels/"),
        ("arrow::", "rollout/src/trajectory/"),
        ("parquet::", "rollout/src/trajectory/"),
        ("tch::", "trainer/src/learner/"),
        ("tantivy::", "rollout/src/tools/"),
    ];
    for (path, text) in rust_files() {
        for (library, room) in rooms {
            // Tests write the files that they read.
            if path.ends_with("tests.rs") {
                continue;
            }
            let uses = text.lines().any(|l| l.trim_start().starts_with(&format!("use {library}")));
            assert!(!uses || path.starts_with(room), "{path} uses {library}, whose room is {room}");
        }
        let quiet =
            path.starts_with("tests/") || path.ends_with("tests.rs") || path == "rollout/src/durable.rs";
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["fs::write(", "fs::rename(", "OpenOptions::new("] {
            assert!(
                quiet || !code.contains(call),
                "{path} calls {call}: durable writes go through rollout::durable"
            );
        }
    }
}

#[test]
fn files_have_one_subject_and_a_name_that_says_it() {
    for (path, text) in rust_files() {
        let lines = text.lines().count();
        assert!(lines <= 600, "{path} has {lines} lines");
        let name = path.rsplit('/').next().unwrap_or_default();
        assert!(!["common.rs", "utils.rs", "util.rs", "helpers.rs", "manager.rs"].contains(&name), "{path}");
        for mark in ["todo", "unimplemented"] {
            assert!(!text.contains(&format!("{mark}!(")), "{path} has a {mark}");
        }
    }
}
