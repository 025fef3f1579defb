//! Checkpoints on a real disk: what is damaged is found, what is whole is used.

use std::fs;

use super::*;
use crate::learner::{AdamW, Optimizer, initial};
use parl_kernels::shape::ModelShape;

fn state(step: u64, refused: u32) -> State {
    State::new("r", step, refused, ["local:1".to_owned(), "scripted:serial".to_owned()])
}

fn learner(seed: u64) -> Learner {
    let shape = ModelShape {
        vocab: 20,
        hidden: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 8,
        max_positions: 16,
        rope_theta: 10_000.0,
        rms_eps: 1e-6,
        qkv_bias: false,
        qk_norm: false,
        tied_head: true,
    };
    let params = initial(&shape, seed);
    Learner::new(shape, params, Optimizer::new(AdamW::default(), None), 1).unwrap()
}

/// A folder that goes when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("parl-checkpoint-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

#[test]
fn the_newest_whole_one_is_used_and_old_ones_go() {
    let scratch = Scratch::new("newest");
    let checkpoints = Checkpoints::new(&scratch.0);
    assert!(checkpoints.newest().unwrap().0.is_none());
    for step in [2, 4, 6] {
        let learner = learner(step);
        checkpoints.write(&state(step, 1), Some(&learner), None, b"{}", 2).unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [4, 6]);
    let root = scratch.0.join("checkpoints");
    assert_eq!(fs::read_link(root.join("latest")).unwrap(), Path::new("step_000006"));
    assert_eq!(fs::read_to_string(root.join("latest.txt")).unwrap(), "step_000006\n");
    let (newest, faults) = checkpoints.newest().unwrap();
    let newest = newest.unwrap();
    assert_eq!((newest.state.step, newest.state.refused_in_a_row, faults.len()), (6, 1, 0));
    assert_eq!(newest.learner, Some(learner(6).save().unwrap()));

    // A byte of the newest goes: the one before it is used, and that is said.
    let path = checkpoints.path(6).join(LEARNER);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 4;
    fs::write(&path, bytes).unwrap();
    let (newest, faults) = checkpoints.newest().unwrap();
    assert_eq!(newest.unwrap().state.step, 4);
    assert!(faults[0].contains("step_000006/trainer_state.safetensors: the file is damaged"), "{faults:?}");
    checkpoints.quarantine_after(4, &scratch.0.join("quarantine/attempt_1")).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [4]);
    assert!(scratch.0.join("quarantine/attempt_1/checkpoints/step_000006").is_dir());
}

#[test]
fn every_damage_is_found() {
    let scratch = Scratch::new("damage");
    let checkpoints = Checkpoints::new(&scratch.0);
    checkpoints.write(&state(1, 0), Some(&learner(1)), Some(b"[]"), b"{}", 0).unwrap();
    let all = files(&checkpoints.path(1));
    assert_eq!(all.len(), 8, "{all:?}");
    for path in all {
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 40 + 1) {
            for bit in [0, 7] {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                fs::write(&path, &bytes).unwrap();
                assert!(checkpoints.newest().is_err(), "{}: bit {bit} of byte {at}", path.display());
            }
            fs::write(&path, &whole[..at]).unwrap();
            assert!(checkpoints.newest().is_err(), "{} cut at {at}", path.display());
        }
        fs::remove_file(&path).unwrap();
        assert!(checkpoints.newest().is_err(), "{} removed", path.display());
        fs::write(&path, &whole).unwrap();
        assert!(checkpoints.newest().unwrap().0.is_some());
    }
}

#[test]
fn what_a_crash_left_is_not_a_checkpoint() {
    let scratch = Scratch::new("crash");
    let checkpoints = Checkpoints::new(&scratch.0);
    checkpoints.write(&state(1, 0), None, None, b"{}", 0).unwrap();
    // A crash before the rename.
    let partial = scratch.0.join("checkpoints/step_000002.tmp");
    fs::create_dir_all(partial.join("hf")).unwrap();
    fs::write(partial.join("state.json"), "half").unwrap();
    assert_eq!(checkpoints.newest().unwrap().0.unwrap().state.step, 1);
    checkpoints.write(&state(2, 0), None, None, b"{}", 0).unwrap();
    assert!(!partial.exists());
    let newest = checkpoints.newest().unwrap().0.unwrap();
    assert_eq!((newest.state.step, newest.learner), (2, None));
    // Another layout is refused by name.
    let path = checkpoints.path(3);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join(STATE), serde_json::to_vec(&State { format: 9, ..state(3, 0) }).unwrap()).unwrap();
    Manifest::of(&path, &[STATE.to_owned()]).unwrap().write(&path).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("its format is 9, this program reads 1"));
}
