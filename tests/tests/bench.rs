//! The bench beside other programs: our side does the work it is given, and the driver tells the truth without peers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its fixtures too")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use parl_tests::{Folder, root, trainer};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(10);
const VOCAB: u64 = 96;

/// The example `bench`, built with the trainer.
fn program() -> PathBuf {
    trainer().parent().unwrap().join("examples/bench")
}

/// A work of three repetitions, 2 prompts of 12 tokens × 3 sequences of 5 more.
fn work(dtype: &str) -> Value {
    let token = |i: u64| 4 + i * 37 % (VOCAB - 4);
    let tokens = |from: u64, n: u64| (0..n).map(|i| token(from * 1000 + i)).collect::<Vec<_>>();
    let repetition = |r: u64| {
        json!({
            "prompts": (0..2).map(|p| tokens(10 * r + p, 12)).collect::<Vec<_>>(),
            "sequences": (0..6).map(|s| tokens(10 * r + s, 17)).collect::<Vec<_>>(),
        })
    };
    json!({
        "shape": {
            "vocab": VOCAB, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48,
            "max_positions": 64, "rope_theta": 1e4, "rms_eps": 1e-6, "qkv_bias": true, "qk_norm": false,
            "tied_head": true,
        },
        "dtype": dtype, "threads": 2, "group": 3, "new_tokens": 5,
        "repetitions": (0..3).map(repetition).collect::<Vec<_>>(),
    })
}

/// The program's lines for two turns.
fn turns(mode: &str, dtype: &str) -> Vec<Value> {
    let folder = Folder::new().unwrap();
    folder.file("work.json", &work(dtype).to_string()).unwrap();
    let call = format!("printf 'go\\ngo\\n' | '{}' {mode} work.json completions", program().display());
    let done = folder.call(Path::new("/bin/sh"), &["-c", &call], PATIENCE).unwrap();
    assert_eq!(done.code, 0, "{mode}: {}", done.err);
    let lines: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["ready"]), (3, &json!(true)), "{}", done.out);
    lines[1..].to_vec()
}

/// The ids and log-probs of a line's sequences.
fn completions(line: &Value) -> Vec<(Vec<u64>, Vec<f64>)> {
    let all = line["completions"].as_array().unwrap().iter();
    let ids = |c: &Value| c["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let logprobs =
        |c: &Value| c["logprobs"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    all.map(|c| (ids(c), logprobs(c))).collect()
}

#[test]
fn sampling_gives_each_sequence_its_exact_tokens_with_their_log_probs() {
    for dtype in ["f32", "bf16"] {
        let lines = turns("sample", dtype);
        let many = lines.iter().map(completions).collect::<Vec<_>>();
        for sequences in &many {
            assert_eq!(sequences.len(), 6);
            for (ids, logprobs) in sequences {
                assert_eq!((ids.len(), logprobs.len()), (5, 5));
                assert!(
                    ids.iter().all(|id| *id < VOCAB) && logprobs.iter().all(|l| *l < 0.0),
                    "{sequences:?}"
                );
            }
        }
        // Each sequence is drawn on its own, each repetition from its own prompts.
        assert!(many[0][0] != many[0][1] && many[0] != many[1]);
        // One stream is the first of them.
        let one: Vec<_> = turns("decode1", dtype).iter().map(completions).collect();
        assert_eq!((one[0].len(), &one[0][0]), (1, &many[0][0]), "{dtype}");
    }
}

#[test]
fn a_step_learns_from_what_it_drew_and_draws_from_what_it_learned() {
    let (step, sampled) = (turns("step", "f32"), turns("sample", "f32"));
    assert_eq!(completions(&step[0]), completions(&sampled[0]));
    // The new weights give other log-probs, hardly ever other tokens.
    assert_ne!(completions(&step[1]), completions(&sampled[1]));
    for line in &step {
        assert_eq!((&line["drawn_tokens"], &line["trained_tokens"]), (&json!(30), &json!(30)), "{line}");
        // The learner finds the log-probs that the engine recorded, token by token.
        assert!(line["mismatch_max"].as_f64().unwrap() < 1e-4, "{line}");
        let parts = line["phases"].as_object().unwrap();
        let seconds = |part: &str| parts[part].as_f64().unwrap();
        for part in ["prefill", "decode", "samples", "forward", "backward", "optimizer", "publish"] {
            assert!(seconds(part) > 0.0, "{part}: {line}");
        }
        let (whole, sum) = (line["seconds"].as_f64().unwrap(), parts.keys().map(|p| seconds(p)).sum::<f64>());
        assert!(sum <= whole && sum > 0.5 * whole, "{line}");
    }
    for line in [turns("learner", "f32"), turns("learner", "bf16"), turns("step", "bf16")].concat() {
        assert_eq!(&line["trained_tokens"], &json!(30), "{line}");
        // Of bf16 there are the weights alone.
        assert!(line["mismatch_max"].as_f64().unwrap() < 1e-4, "{line}");
    }
}

#[test]
fn what_cannot_be_done_is_one_line() {
    let folder = Folder::new().unwrap();
    folder.file("work.json", &work("bf16").to_string()).unwrap();
    folder.file("odd.json", &work("f32").to_string().replace("group", "grupo")).unwrap();
    for (call, reason) in [
        ("echo stop | BENCH sample work.json", "the line `stop` is not `go`"),
        ("echo go | BENCH sample odd.json", "unknown field `grupo`"),
        ("echo go | BENCH train work.json", "`train` is none of"),
    ] {
        let call = call.replace("BENCH", &format!("'{}'", program().display()));
        let done = folder.call(Path::new("/bin/sh"), &["-c", &call], PATIENCE).unwrap();
        assert!(done.code == 1 && done.err.contains(reason) && done.err.lines().count() == 1, "{done:?}");
    }
}

#[test]
fn the_driver_names_missing_peers_and_measures_ours() {
    let folder = Folder::new().unwrap();
    let call = |arguments: &str| {
        let script = root().join("scripts/bench");
        let call = format!("unset PARL_PEERS; PYTHONDONTWRITEBYTECODE=1 '{}'/{arguments}", script.display());
        folder.call(Path::new("/bin/sh"), &["-c", &call], PATIENCE).unwrap()
    };
    let options = format!("--repeats 1 --warmup 0 --program '{}'", program().display());
    let mut lines = String::new();
    for dtype in ["f32", "bf16"] {
        let done = call(&format!("peers --preset tiny --dtype {dtype} {options}"));
        let last = done.out.lines().last().unwrap_or_default();
        let line: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        // Other tests run at the same time, or do not.
        assert_eq!(done.code, if line["busy"] == true { 4 } else { 0 }, "{done:?}");
        assert_eq!(line["busy"], line["others_cpu"].as_f64().unwrap() > 0.1);
        for (ratio, mode) in [
            ("step_vs_trl", "step"),
            ("sampling_vs_llamacpp", "sample"),
            ("decode1_vs_llamacpp", "decode1"),
            ("learner_vs_hf", "learner"),
            ("apart_vs_hf", "apart"),
        ] {
            assert_eq!(line.get(ratio), Some(&Value::Null), "{line}");
            let reason = line["reasons"][ratio].as_str().unwrap();
            assert!(reason.contains("PARL_PEERS is not set"), "{line}");
            assert!(line["seconds"][mode]["parl"].as_f64().unwrap() > 0.0, "{line}");
        }
        lines += last;
        lines += "\n";
    }
    lines += r#"{"kind":"ceilings","threads":2,"flops_per_second":1e15,"bytes_per_second":1e7,"cached_bytes_per_second":1e8}"#;
    folder.file("lines.jsonl", &lines).unwrap();
    let page = call("page lines.jsonl --out performance.md && cat performance.md");
    assert_eq!(page.code, 0, "{}", page.err);
    for part in [
        "## tiny, f32",
        "## tiny, bf16",
        "| learner, backward |",
        "| update: forward |",
        "| update, nothing alike: forward |",
        "not compared: PARL_PEERS is not set",
        "s (reading a cache)",
    ] {
        assert!(page.out.contains(part), "{part}: {}", page.out);
    }
}

#[test]
fn the_peers_programs_are_python() {
    let script = "import ast, sys\nfor name in sys.argv[1:]:\n    ast.parse(open(name).read(), name)";
    let shared = ["programs.py", "turns.py", "work.py", "floors.py", "hf_model.py"];
    let own = [
        "peers",
        "page",
        "scale",
        "instructions",
        "hf_learner.py",
        "products.py",
        "trl_step.py",
        "llamacpp.py",
    ];
    let paths: Vec<String> = shared
        .iter()
        .chain(&own)
        .map(|name| root().join("scripts/bench").join(name).display().to_string())
        .collect();
    let call = format!("python3 -c '{script}' '{}'", paths.join("' '"));
    let done = Folder::new().unwrap().call(Path::new("/bin/sh"), &["-c", &call], PATIENCE).unwrap();
    assert_eq!(done.code, 0, "{}", done.err);
}
