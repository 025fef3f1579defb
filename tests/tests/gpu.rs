//! What scripts/bench/gpu runs on a card, as far as it goes without one: our program on the CPU, and the script's own
//! words.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]

use std::path::Path;
use std::time::Duration;

use parl_tests::{Folder, Outcome, root, trainer};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(10);

fn shell(folder: &Folder, call: &str) -> Outcome {
    folder.call(Path::new("/bin/sh"), &["-c", call], PATIENCE).unwrap()
}

/// The line of the example `gpu` on a tiny model.
fn measured(mode: &str, dtype: &str) -> Value {
    let program = trainer().parent().unwrap().join("examples/gpu");
    let done = shell(&Folder::new().unwrap(), &format!("'{}' {mode} tiny cpu {dtype}", program.display()));
    assert_eq!((done.code, done.out.lines().count()), (0, 1), "{mode}: {}", done.err);
    serde_json::from_str(&done.out).unwrap()
}

#[test]
fn what_is_measured_on_a_card_is_measured_on_the_cpu() {
    for (dtype, apart) in [("f32", 1e-3), ("bf16", 0.3)] {
        let update = measured("update", dtype);
        // Each update is seen by the token after it, and engine and learner say the same of what was drawn.
        assert_eq!(update["versions"], json!([1, 2, 3, 4, 5]), "{update}");
        assert!(update["mismatch_max"].as_f64().unwrap() < apart, "{update}");
        let learner = measured("learner", dtype);
        assert!(learner["operations"].as_f64().unwrap() > 1e6 && learner["tokens"] == 124.0, "{learner}");
    }
    let decode = measured("decode", "bf16");
    let rows: Vec<&Value> = decode["decode"].as_array().unwrap().iter().map(|row| &row["batch"]).collect();
    assert_eq!(rows, [&json!(1), &json!(3)]);
    let mixed = measured("mixed", "bf16");
    assert_eq!(mixed["requests"], 4, "{mixed}");
    let share = measured("share", "f32");
    // Four agents of 64 + 32 tokens, of which the last that is drawn is not computed.
    assert_eq!(share["apart"]["computed_tokens"], 4 * (64 + 32 + 31));
    // The one that goes ahead of the others is one of them: all that it computed is found, but for the last token.
    assert_eq!(share["shared"]["computed_tokens"], 64 + 32 + 4 * (32 + 31) - 31);
}

#[test]
fn the_script_tells_its_steps_and_what_is_missing() {
    let folder = Folder::new().unwrap();
    let script = root().join("scripts/bench/gpu").display().to_string();
    let plain = format!("PYTHONDONTWRITEBYTECODE=1 '{script}'");
    let done = shell(&folder, &format!("{plain} nowhere --dry-run"));
    let steps: Vec<&str> = done.out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let wanted = "machine correctness one_copy decode decode_library decode_fp8 hf_decode learner share mixed run ahead memcheck racecheck initcheck synccheck";
    assert_eq!((done.code, steps.join(" ").as_str()), (0, wanted), "{}", done.err);
    let done = shell(&folder, &format!("{plain} nowhere --dry-run --only share,decode"));
    assert_eq!(done.out.lines().count(), 2);
    for (call, reason) in [
        ("nowhere --out out.json", "nowhere has no trainer: scripts/bench/gpu_binaries fills such a folder"),
        ("nowhere --only speed", "--only: speed is no step"),
    ] {
        let done = shell(&folder, &format!("{plain} {call}"));
        assert!(done.code == 2 && done.err.contains(reason), "{done:?}");
    }
    // Programs that do what a card's machine would.
    for (name, says) in [
        ("nvidia-smi", "echo 'A Card, 580.1, 80000 MiB, 9.0'"),
        ("trainer", "exit 3"),
        (
            "gpu",
            "echo '{\"moved_bytes\": 0, \"versions\": [1, 2], \"mismatch_max\": 0.0, \
                \"mismatch_kl\": 0.0, \"mismatch_mean\": 0.0, \"engine_from_f32_mean\": 0.0, \
                \"learner_from_f32_mean\": 0.0}'",
        ),
        ("cuda_numbers", "printf 'test a_row ... ok\\ntest b_row ... %s\\n' ${OUTCOME:-ok}"),
        ("cuda_kernels", "echo 'test c_row ... ok'"),
        (
            "compute-sanitizer",
            "printf '========= ERROR SUMMARY: %s errors\\ntest a_row ... ok\\n' ${ERRORS:-0}",
        ),
    ] {
        folder.file(name, &format!("#!/bin/sh\n{says}\n")).unwrap();
    }
    let only = |steps: &str, setting: &str| {
        let path = "PATH=\"$PWD:$PATH\"";
        let call = format!("chmod +x *; {path} {setting} {plain} . --out out.json --only {steps}");
        let done = shell(&folder, &format!("{call}; code=$?; cat out.json >&2; exit $code"));
        let report: Value = serde_json::from_str(&done.err).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        (done.code, report["steps"].clone())
    };
    let (code, steps) = only("correctness,one_copy,memcheck", "");
    assert_eq!(code, 0, "{steps}");
    assert_eq!(steps["correctness"]["result"]["tests"], json!({"a_row": "ok", "b_row": "ok", "c_row": "ok"}));
    assert_eq!(steps["memcheck"]["result"]["errors"], 0);
    let (code, steps) = only("correctness,run,memcheck", "OUTCOME=FAILED ERRORS=2");
    assert_eq!(code, 1);
    for (step, why) in
        [("correctness", "not every test passes"), ("run", "exit code 3"), ("memcheck", "not clean")]
    {
        assert_eq!((&steps[step]["status"], &steps[step]["why"]), (&json!("failed"), &json!(why)), "{steps}");
    }
    let (code, steps) = only("share", "");
    assert_eq!((code, &steps["share"]["status"]), (0, &json!("ok")));
}

#[test]
fn the_scripts_beside_it_are_python() {
    let script = "import ast, sys\nfor name in sys.argv[1:]:\n    ast.parse(open(name).read(), name)";
    let files = ["gpu", "gpu_ceilings.py", "gpu_page", "hf_decode.py"];
    let paths = files.map(|name| root().join("scripts/bench").join(name).display().to_string());
    let done = shell(&Folder::new().unwrap(), &format!("python3 -c '{script}' '{}'", paths.join("' '")));
    assert_eq!(done.code, 0, "{}", done.err);
}

#[test]
fn the_page_of_what_was_measured_is_made_of_the_reports() {
    let script = root().join("scripts/bench/gpu_page").display().to_string();
    let call = format!("PYTHONDONTWRITEBYTECODE=1 '{script}' --out page.md; cat page.md");
    let done = shell(&Folder::new().unwrap(), &call);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out, std::fs::read_to_string(root().join("docs/gpu-measured.md")).unwrap());
}
