//! Measures what a step pays for its sinks: how long the offer of a line takes, with sinks that write, one that has
//! died, and one that hangs. Prints one JSON line, in microseconds.
//!
//! After a build of the workspace with all targets: `target/release/examples/track_cost METRICS_JSONL FOLDER`
#![expect(clippy::print_stdout, reason = "the line is the program's output")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use parl_trainer::TrainerError;
use parl_trainer::run::folder::Marker;
use parl_trainer::track::config::{Format, Style, TrackingConfig};
use parl_trainer::track::{About, Open, QUEUE, Tracker, start};
use serde_json::{Value, json};

/// Lines that are offered in each case.
const LINES: usize = 2000;

fn offers(mut tracker: Tracker, lines: &[&str], pause: Duration) -> Value {
    let mut micros: Vec<f64> = Vec::new();
    for line in lines.iter().cycle().take(LINES) {
        let begin = Instant::now();
        tracker.offer(line);
        micros.push(begin.elapsed().as_secs_f64() * 1e6);
        std::thread::sleep(pause);
    }
    micros.sort_by(f64::total_cmp);
    let begin = Instant::now();
    tracker.finish(Duration::from_millis(500));
    json!({
        "median": micros[LINES / 2], "p99": micros[LINES * 99 / 100], "worst": micros[LINES - 1],
        "end_of_run": begin.elapsed().as_secs_f64() * 1e6,
    })
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let [metrics, folder] = arguments.as_slice() else { bail!("two arguments: METRICS_JSONL FOLDER") };
    let text = std::fs::read_to_string(metrics).with_context(|| metrics.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        bail!("{}: no lines", metrics.display());
    }
    let made_at = jiff::Timestamp::now().to_string();
    let marker = Marker { run_id: "cost".into(), made_by: "cost".into(), made_at, overrides: Vec::new() };
    let about = About::new(Path::new(folder), &marker, &json!({}))?;
    let sinks = vec![Format::Tensorboard, Format::Wandb];
    // Longer than the sinks need for a line: steps are longer too.
    let pause = Duration::from_millis(1);
    let writing = start(&TrackingConfig { sinks, ..TrackingConfig::default() }, &about);
    let dead: Open = Box::new(|| Err(TrainerError::Internal("dead".into())));
    let hanging: Open = Box::new(|| {
        loop {
            std::thread::park();
        }
    });
    let one = |open| Tracker::new(Style::Parl, vec![("one", open)]);
    let figures = json!({
        "writing": offers(writing, &lines, pause),
        "dead": offers(one(dead), &lines, pause),
        "hanging": offers(one(hanging), &lines, pause),
        "lines": LINES, "queue": QUEUE,
    });
    println!("{figures}");
    Ok(())
}
