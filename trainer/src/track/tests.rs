use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use parl_rollout::durable;
use prost::Message;
use serde_json::json;

use super::line::{alias, read};
use super::tensorboard::{Event, masked_crc};
use super::wandb::log::{Record, frame};
use super::*;
use crate::config::Config;

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("parl-track-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn about(run: &Path, attempt: u32, first_step: u64) -> About {
    let made_at = "2026-01-02T03:04:05.5Z";
    let marker = Marker {
        run_id: "night".into(),
        made_by: "t".into(),
        made_at: made_at.into(),
        overrides: Vec::new(),
    };
    let about = About::new(run, &marker, &serde_json::to_value(Config::default()).unwrap()).unwrap();
    About { attempt, first_step, began_at: about.began_at + 1000.0 * f64::from(attempt), ..about }
}

fn text(step: u64, reward: f64) -> String {
    json!({
        "step": step, "attempt": 0, "timestamp": 1_767_323_050.25 + step as f64, "reward/mean": reward,
        "entropy/mean": null, "optim/refused": "why not",
    })
    .to_string()
}

/// A reader of the W&B format that shares nothing with the writer but the messages.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut found, mut open) = (0, Vec::new(), None::<Vec<u8>>);
    while at < bytes.len() {
        let left = 32768 - at % 32768;
        if left < 7 {
            assert!(bytes[at..at + left].iter().all(|b| *b == 0), "padding at {at}");
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        assert!(7 + length <= left, "the chunk at {at} crosses a block");
        let kind = bytes[at + 6];
        let data = &bytes[at + 7..at + 7 + length];
        assert_eq!(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()), {
            let mut crc = u32::MAX;
            for byte in std::iter::once(&kind).chain(data) {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                }
            }
            !crc
        });
        match (kind, open.take()) {
            (1, None) => found.push(data.to_vec()),
            (2, None) => open = Some(data.to_vec()),
            (3, Some(begun)) => open = Some([&begun[..], data].concat()),
            (4, Some(begun)) => found.push([&begun[..], data].concat()),
            (kind, open) => panic!("a chunk of kind {kind} at {at}, open {}", open.is_some()),
        }
        at += 7 + length;
    }
    assert!(open.is_none());
    found
}

fn events(bytes: &[u8]) -> Vec<Event> {
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(crc(at + 8), masked_crc(&bytes[at..at + 8]));
        let data = &bytes[at + 12..at + 12 + length];
        assert_eq!(crc(at + 12 + length), masked_crc(data));
        found.push(Event::decode(data).unwrap());
        at += 16 + length;
    }
    found
}

fn rewards(run: &Path) -> Vec<(i64, f32)> {
    let mut found: Vec<(i64, f32)> = Vec::new();
    for name in durable::names(&run.join("tensorboard")).unwrap() {
        for event in events(&fs::read(run.join("tensorboard").join(name)).unwrap()) {
            if event.session_log.is_some() {
                found.retain(|(step, _)| *step < event.step);
            }
            for scalar in event.summary.into_iter().flat_map(|s| s.value) {
                if scalar.tag == "reward/mean" {
                    found.push((event.step, scalar.simple_value.unwrap()));
                }
            }
        }
    }
    found
}

/// Steps and rewards in a W&B file, and its exit code.
type Contents = (Vec<(u64, String)>, Option<i32>);

/// What the W&B files hold, oldest first.
fn offline(run: &Path) -> Vec<Contents> {
    let wandb = run.join("wandb");
    let files = durable::names(&wandb).unwrap().into_iter().map(|folder| {
        let id = folder.rsplit('-').next().unwrap();
        fs::read(wandb.join(&folder).join(format!("run-{id}.wandb"))).unwrap()
    });
    files.map(|bytes| contents(&bytes)).collect()
}

fn contents(bytes: &[u8]) -> Contents {
    assert_eq!(&bytes[..7], b":W&B\xe1\xbe\x00");
    // The header counts as part of the first block: an empty chunk of its size stands in for it.
    let mut chunks = [&crc32fast::hash(&[1]).to_le_bytes()[..], &[0, 0, 1]].concat();
    chunks.extend(&bytes[7..]);
    let records: Vec<Record> =
        records(&chunks).iter().skip(1).map(|record| Record::decode(&record[..]).unwrap()).collect();
    assert!(records.iter().enumerate().all(|(i, record)| record.num == i as i64 + 1));
    assert!(records[0].header.is_some() && records[1].run.is_some());
    let row = |record: &Record| {
        let history = record.history.clone()?;
        let reward = history.item.iter().find(|item| item.nested_key == ["reward/mean"])?;
        Some((history.step?.num as u64, reward.value_json.clone()))
    };
    let exit = records.last().and_then(|record| record.exit).map(|exit| exit.exit_code);
    (records.iter().filter_map(row).collect(), exit)
}

#[test]
fn checksums_are_those_of_the_formats() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
    // Rotated right by 15 bits, and moved by a constant.
    assert_eq!(masked_crc(b"123456789"), 0x2507_c60d_u32.wrapping_add(0xa282_ead8));
}

#[test]
fn records_of_any_length_at_any_place_of_a_block_come_back() {
    let mut bytes = Vec::new();
    let mut sent = Vec::new();
    let sizes =
        [0, 1, 32761, 5, 32768 - 7 - 12 - 6, 100_000, 0, 65521].into_iter().chain((0..40).map(|i| 811 * i));
    for (i, size) in sizes.enumerate() {
        let record: Vec<u8> = (0..size).map(|at| (at * 31 + i) as u8).collect();
        let mut out = Vec::new();
        frame(bytes.len(), &record, &mut out);
        bytes.extend(out);
        sent.push(record);
    }
    assert!(records(&bytes) == sent);
}

fn rows(rewards: &[(u64, f64)]) -> Vec<(u64, String)> {
    rewards.iter().map(|(step, reward)| (*step, format!("{reward:?}"))).collect()
}

/// A launch that is stopped after five steps, and one that goes on from the checkpoint after the third; between them
/// `between` is called.
fn two_launches(run: &Path, between: &dyn Fn()) {
    let sinks = vec![Format::Tensorboard, Format::Wandb];
    let config = TrackingConfig { sinks, ..TrackingConfig::default() };
    let mut tracker = start(&config, &about(run, 0, 0));
    for step in 0..5 {
        assert!(tracker.offer(&text(step, step as f64)).is_empty());
    }
    drop(tracker);
    assert_eq!(rewards(run).len(), 5);
    assert_eq!(offline(run)[0].1, Some(1), "a run that ends without its end has failed");
    between();
    let (mut metrics, _) = durable::Lines::open(&run.join("metrics.jsonl")).unwrap();
    (0..3).for_each(|step| metrics.append(&text(step, step as f64)).unwrap());
    let mut tracker = start(&config, &about(run, 1, 3));
    for step in 3..7 {
        // It may be in the file before the sink looks.
        let line = text(step, 10.0 + step as f64);
        metrics.append(&line).unwrap();
        assert!(tracker.offer(&line).is_empty());
    }
    assert_eq!(tracker.finish(Duration::from_mins(1)), Vec::<String>::new());
}

const RESUMED: [(u64, f64); 7] = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0), (6, 16.0)];

#[test]
fn a_resumed_run_has_each_step_once_in_both_formats() {
    let run = scratch("resume");
    two_launches(&run, &|| ());
    assert_eq!(rewards(&run), RESUMED.map(|(step, reward)| (step as i64, reward as f32)));
    assert_eq!(offline(&run), [(rows(&RESUMED), Some(0))]);
    assert_eq!(durable::names(&run.join("tensorboard")).unwrap().len(), 2);

    // Sinks that are turned on later have the earlier steps too.
    fs::remove_dir_all(run.join("tensorboard")).unwrap();
    let config = TrackingConfig { sinks: vec![Format::Tensorboard], ..TrackingConfig::default() };
    start(&config, &about(&run, 2, 7)).finish(Duration::from_mins(1));
    assert_eq!(rewards(&run).len(), 7);
    fs::remove_dir_all(run).unwrap();
}

#[test]
fn what_was_uploaded_is_left_alone_and_not_written_twice() {
    let run = scratch("uploaded");
    let mark = || {
        for folder in durable::names(&run.join("wandb")).unwrap() {
            let id = folder.rsplit('-').next().unwrap();
            fs::write(run.join(format!("wandb/{folder}/run-{id}.wandb.synced")), "").unwrap();
        }
    };
    two_launches(&run, &mark);
    let first: Vec<(u64, f64)> = (0..5).map(|step| (step, step as f64)).collect();
    let later = [(5, 15.0), (6, 16.0)];
    assert_eq!(offline(&run), [(rows(&first), Some(1)), (rows(&later), Some(0))]);

    // Afterwards too, and as often as one likes.
    let settings = TrackingConfig::default().wandb;
    let lines = read(&run, Style::Parl, 0.0, u64::MAX).unwrap();
    for _ in 0..2 {
        let mut again = OfflineRun::open(&about(&run, 0, 0), &settings, &lines).unwrap();
        again.finish(0).unwrap();
        assert_eq!(offline(&run), [(rows(&first), Some(1)), (rows(&later), Some(0))]);
    }
    mark();
    let nothing = OfflineRun::open(&about(&run, 0, 0), &settings, &lines).unwrap();
    assert_eq!(nothing.rows(), 0);
    fs::remove_dir_all(run).unwrap();
}

/// A sink that does one thing a line, as it is told.
struct Told {
    seen: Sender<u64>,
    gate: Arc<Mutex<()>>,
    breaks_at: u64,
}

impl Sink for Told {
    fn write(&mut self, line: &Line) -> Result<(), TrainerError> {
        drop(self.gate.lock());
        if line.step == self.breaks_at {
            return Err(TrainerError::Internal("the disk is full".into()));
        }
        self.seen.send(line.step).map_err(|e| TrainerError::Internal(e.to_string()))
    }

    fn finish(&mut self, exit_code: i32) -> Result<(), TrainerError> {
        self.seen.send(1000 + exit_code as u64).map_err(|e| TrainerError::Internal(e.to_string()))
    }
}

fn told(gate: &Arc<Mutex<()>>, breaks_at: u64) -> (Open, Receiver<u64>) {
    let (seen, lines) = channel();
    let gate = gate.clone();
    (Box::new(move || Ok(Box::new(Told { seen, gate, breaks_at }))), lines)
}

#[test]
fn a_stuck_sink_costs_lines_and_neither_the_run_nor_other_sinks() {
    let gate = Arc::new(Mutex::new(()));
    let (stuck, stuck_lines) = told(&gate, u64::MAX);
    let (free, free_lines) = told(&Arc::default(), u64::MAX);
    let held = gate.lock().unwrap();
    let mut tracker = Tracker::new(Style::Parl, vec![("stuck", stuck), ("free", free)]);
    let mut notes = Vec::new();
    // One line may be in the sink's hands.
    let n = QUEUE as u64 + 11;
    for step in 0..n {
        notes.extend(tracker.offer(&text(step, 0.0)));
        assert_eq!(free_lines.recv().unwrap(), step);
    }
    assert!(notes.len() == 1 && notes[0].contains("stuck is behind by 256 lines"), "{notes:?}");
    let dropped = tracker.feeds[0].dropped;
    assert!((10..=11).contains(&dropped), "{dropped}");
    drop(held);
    let notes = tracker.finish(Duration::from_mins(1));
    assert!(notes.len() == 1 && notes[0].contains(&format!("stuck lost {dropped} lines")), "{notes:?}");
    assert_eq!(stuck_lines.iter().count() as u64, n - dropped + 1);
    assert_eq!(free_lines.recv().unwrap(), 1000);
}

#[test]
fn a_sink_that_never_comes_back_is_left_behind() {
    let gate = Arc::new(Mutex::new(()));
    let (stuck, lines) = told(&gate, u64::MAX);
    let held = gate.lock().unwrap();
    let mut tracker = Tracker::new(Style::Parl, vec![("stuck", stuck)]);
    tracker.offer(&text(0, 0.0));
    let notes = tracker.finish(Duration::from_millis(20));
    assert!(notes.len() == 1 && notes[0].contains("stuck is not done"), "{notes:?}");
    drop(held);
    assert_eq!(lines.iter().collect::<Vec<_>>(), [0, 1000]);
}

#[test]
fn a_dead_sink_is_told_of_once_with_its_reason() {
    let (dead, lines) = told(&Arc::default(), 2);
    let mut tracker = Tracker::new(Style::Parl, vec![("dead", dead)]);
    tracker.offer(&text(0, 0.0));
    tracker.offer(&text(1, 0.0));
    tracker.offer(&text(2, 0.0));
    // Ends when the sink is gone.
    assert_eq!(lines.iter().collect::<Vec<_>>(), [0, 1]);
    let notes: Vec<String> = std::iter::repeat_with(|| {
        thread::sleep(Duration::from_millis(1));
        tracker.offer(&text(3, 0.0))
    })
    .take(500)
    .flatten()
    .collect();
    assert!(notes.len() == 1 && notes[0].contains("dead failed: internal: the disk is full"), "{notes:?}");
    assert!(tracker.finish(PATIENCE).is_empty());

    let refused: Open = Box::new(|| Err(TrainerError::Internal("no room".into())));
    let notes = Tracker::new(Style::Parl, vec![("dead", refused)]).finish(Duration::from_mins(1));
    assert!(notes.len() == 1 && notes[0].contains("dead failed: internal: no room"), "{notes:?}");
}

#[test]
fn lines_are_read_with_their_times_and_names() {
    let run = scratch("lines");
    assert_eq!(read(&run, Style::Parl, 0.0, 9).unwrap(), []);
    let old = r#"{"step":0,"reward/mean":1.5,"time/rollout":2.0,"time/learn":0.5,"entropy/mean":null}"#;
    let path = run.join("metrics.jsonl");
    fs::write(&path, format!("{old}\n{}\n{}\n{{\"st", text(1, 0.5), text(2, 0.0))).unwrap();
    let lines = read(&run, Style::Trl, 100.0, 2).unwrap();
    assert_eq!((lines.len(), lines[0].unix_seconds, lines[1].unix_seconds), (2, 102.5, 1_767_323_051.25));
    let names: Vec<&str> = lines[0].values.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["reward", "time/rollout", "time/learn"]);
    for bad in ["[]", "{\"reward/mean\":1}", "{\"step\":-1}", "nonsense"] {
        fs::write(&path, format!("{old}\n{bad}\n")).unwrap();
        let error = read(&run, Style::Parl, 0.0, 9).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl") && error.contains("line 2: "), "{bad}: {error}");
    }
    assert_eq!(alias(Style::Verl, "reward/mean"), "critic/rewards/mean");
    assert_eq!(alias(Style::Verl, "frac_reward_zero_std"), "frac_reward_zero_std");
    assert_eq!(alias(Style::Parl, "reward/mean"), "reward/mean");
    assert_eq!(alias(Style::Trl, "parl/speedup"), "parl/speedup");
    fs::remove_dir_all(run).unwrap();
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let issues = |change: &dyn Fn(&mut TrackingConfig)| {
        let mut config = TrackingConfig::default();
        change(&mut config);
        config.issues().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert!(issues(&|_| ()).is_empty());
    assert_eq!(issues(&|c| c.sinks = vec![Format::Wandb, Format::Wandb]), ["sinks[1]"]);
    assert_eq!(issues(&|c| c.wandb.project = "a/b".into()), ["wandb.project"]);
    assert_eq!(issues(&|c| c.wandb.project = " ".into()), ["wandb.project"]);
}
