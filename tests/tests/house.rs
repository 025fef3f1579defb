//! The rules of the house: who may depend on whom, and what stands nowhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use parl_tests::root;
use serde_json::Value;

/// What each crate may depend on, of ours; a crate that is not here may not exist.
const BELOW: [(&str, &[&str]); 5] = [
    ("parl-kernels", &[]),
    ("parl-rewards", &[]),
    ("parl-rollout", &["parl-kernels", "parl-rewards"]),
    ("parl-trainer", &["parl-kernels", "parl-rewards", "parl-rollout"]),
    ("parl-tests", &["parl-kernels", "parl-rewards", "parl-rollout", "parl-trainer"]),
];

/// Libraries with one room, by their names in code.
const ROOMS: [(&str, &str); 7] = [
    ("cudarc", "kernels/src/cuda/"),
    ("arrow", "rollout/src/trajectory/"),
    ("parquet", "rollout/src/trajectory/"),
    ("tantivy", "rollout/src/tools/"),
    ("tiny_http", "trainer/src/report/"),
    ("tch", "trainer/src/learner/"),
    ("torch_sys", "trainer/src/learner/"),
];

fn collect(folder: &Path, endings: &[&str], found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, endings, found);
        } else if endings.contains(&ending.as_str()) {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Path below the root and text of the files of the project's own folders that have one of these endings (an empty
/// one: none).
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["kernels", "rewards", "rollout", "trainer", "tests", "configs", "scripts", "docs"] {
        collect(&root().join(folder), endings, &mut found);
    }
    assert!(!found.is_empty(), "{endings:?}");
    found
}

fn documents() -> Vec<(String, String)> {
    let own = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    let read = |name: &str| (name.to_owned(), fs::read_to_string(root().join(name)).unwrap());
    own.into_iter().map(read).chain(files(&["md"])).collect()
}

/// Whether a line of code names something in `library`: `library::` with no other name before it.
fn names(line: &str, library: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let path = format!("{library}::");
    code.match_indices(&path).any(|(at, _)| {
        !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            || code[..at]
                .trim_end()
                .strip_suffix("::")
                .is_some_and(|rest| rest.is_empty() || rest.ends_with(' '))
    })
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let fixed = ["--offline", "--locked"];
    let output = Command::new(cargo).args(arguments).args(fixed).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn running_and_testing_share_one_build() {
    // Package, version and features, of all that `cargo build --bins` and `cargo test` compile.
    let resolved = |edges: &str| -> BTreeSet<String> {
        let tree =
            cargo(&["tree", "--workspace", "--prefix", "none", "--format", "{p} {f}", "--edges", edges]);
        tree.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    };
    let [running, testing] = ["normal,build", "normal,build,dev"].map(resolved);
    let apart: Vec<&String> = running.difference(&testing).collect();
    assert!(
        apart.is_empty(),
        "tests turn on other features of these, so they would be built twice: {apart:?}"
    );
}

#[test]
fn crates_depend_downwards_only() {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |v: &Value| v["name"].as_str().unwrap().to_owned();
    let found: BTreeSet<String> = packages.iter().map(name).collect();
    assert_eq!(found, BELOW.iter().map(|(name, _)| (*name).to_owned()).collect());
    for package in packages {
        let from = name(package);
        let (_, below) = BELOW.iter().find(|(name, _)| *name == from).unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = name(dependency);
            assert!(!found.contains(&on) || below.contains(&on.as_str()), "{from} depends on {on}");
            let room = ROOMS.iter().find(|(library, _)| *library == on.replace('-', "_"));
            let home = room.is_none_or(|(_, room)| from.strip_prefix("parl-") == room.split('/').next());
            assert!(home, "{from} depends on {on}, whose room is {room:?}");
        }
    }
}

#[test]
fn versions_and_lints_stand_in_the_root() {
    let members = files(&["toml"]).into_iter().filter(|(path, _)| path.ends_with("Cargo.toml"));
    for (path, text) in members.filter(|(path, _)| path.matches('/').count() == 1) {
        assert!(text.contains("\n[lints]\nworkspace = true\n"), "{path} has lints of its own");
        let mut table = "";
        for line in text.lines() {
            if line.starts_with('[') {
                table = line;
            } else if table.ends_with("dependencies]") && !line.is_empty() && !line.starts_with('#') {
                assert!(line.contains("workspace = true"), "{path}: {line}: its version stands in the root");
            }
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("[workspace.dependencies]\n").unwrap();
    for line in dependencies.lines().take_while(|l| !l.starts_with('[')).filter(|l| !l.trim().is_empty()) {
        assert!(line.starts_with("parl-") || line.contains(" # "), "Cargo.toml: {line}: why is it there?");
    }
}

#[test]
fn each_library_has_one_room() {
    for (path, text) in files(&["rs"]) {
        // Tests write the files that they read; build scripts need the paths of what they link; the examples below
        // are no code.
        if path.ends_with("tests.rs") || path.ends_with("build.rs") || path.ends_with("house.rs") {
            continue;
        }
        for (library, room) in ROOMS {
            let used = text.lines().position(|line| names(line, library));
            assert!(
                used.is_none() || path.starts_with(room),
                "{path}:{} uses {library}, whose room is {room}",
                used.unwrap_or_default() + 1
            );
        }
    }
    for (line, found) in [
        ("use tch::Tensor;", true),
        ("let x: ::tch::Tensor = y;", true),
        ("pub(crate) use tch::{Kind};", true),
        ("    let t = tch::Tensor::new();", true),
        ("use crate::tch::Tensor;", false),
        ("use batch::Tensor;", false),
        ("// tch::Tensor is not Sync", false),
    ] {
        assert_eq!(names(line, "tch"), found, "{line}");
    }
}

#[test]
fn unsafe_blocks_have_their_rooms() {
    // In two parts, so that it does not find itself.
    let mark = concat!("unsafe", "_code");
    for (path, text) in files(&["rs"]) {
        let rooms = ["kernels/", "trainer/src/learner/shim", "trainer/src/learner/lease.rs"];
        let home = rooms.iter().any(|room| path.starts_with(room));
        assert!(home || !text.contains(mark), "{path} allows {mark}, whose rooms are {rooms:?}");
    }
}

#[test]
fn files_have_one_subject_and_a_name_that_says_it() {
    for (path, text) in files(&["rs", "py", "cu", "cuh", "cpp", "h", "sql", "js", "mjs", "css", "html"]) {
        let lines = text.lines().count();
        assert!(lines <= 600, "{path} has {lines} lines");
        let vague = ["common", "util", "utils", "helper", "helpers", "manager", "misc"];
        let parts = path.split(['/', '.']);
        assert!(parts.into_iter().all(|part| !vague.contains(&part)), "{path} says nothing by its name");
        for mark in ["todo", "unimplemented"] {
            assert!(!text.contains(&format!("{mark}!(")), "{path} has a {mark}");
        }
    }
}

#[test]
fn nothing_names_a_path_of_one_machine() {
    let folders = ["home", "root", "work", "tmp", "Users", "mnt"];
    let texts = files(&[
        "rs", "toml", "yaml", "json", "ipynb", "py", "sql", "cu", "cuh", "cpp", "h", "txt", "js", "mjs",
        "css", "html", "",
    ]);
    for (path, text) in texts.into_iter().chain(documents()) {
        for (number, line) in text.lines().enumerate() {
            for folder in folders {
                let absolute = format!("/{folder}/");
                let found = line.match_indices(&absolute).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}$".contains(c))
                });
                assert!(!found, "{path}:{}: {absolute} is there on one machine only", number + 1);
            }
        }
    }
}

#[test]
fn documents_point_at_what_is_there() {
    for (path, text) in documents() {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap_or_default();
            let target = root().join(&path).parent().unwrap().join(file);
            assert!(target.exists(), "{path} links to {link}");
        }
    }
}
