//! Tracking: copies of `metrics.jsonl` in the formats of tools that people look at runs with.
//!
//! `metrics.jsonl` is the source. Each sink has a thread and a bounded queue of its own; the run offers it lines and
//! never waits. A line for which there is no room is dropped and counted, a sink that fails is left behind, and
//! [`backfill`] writes what is missing.

pub mod backfill;
pub mod config;
pub mod line;
pub mod prometheus;
pub mod tensorboard;
pub mod wandb;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parl_rollout::RolloutError;
use serde_json::Value;

use crate::error::TrainerError;
use crate::run::folder::Marker;
use config::{Format, Style, TrackingConfig};
use line::Line;
use tensorboard::EventFile;
use wandb::OfflineRun;

/// Lines that wait for a sink before further ones are dropped.
pub const QUEUE: usize = 256;
/// How long the end of a run waits for its sinks.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What sinks know of a run.
#[derive(Debug, Clone)]
pub struct About {
    /// Its folder.
    pub run: PathBuf,
    /// Its name.
    pub run_id: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// Number of this launch, from 0.
    pub attempt: u32,
    /// When this launch began, in seconds since 1970; `made_at` in the first.
    pub began_at: f64,
    /// First step of this launch.
    pub first_step: u64,
    /// The resolved config.
    pub config: Value,
}

impl About {
    /// A run as its first launch knows it.
    ///
    /// # Errors
    /// When the marker is damaged.
    pub fn new(run: &Path, marker: &Marker, config: &Value) -> Result<Self, TrainerError> {
        let made_at: Timestamp = marker.made_at.parse().map_err(|e| RolloutError::Corrupt {
            path: run.to_owned(),
            message: format!("the marker's made_at `{}` is no time: {e}", marker.made_at),
        })?;
        Ok(Self {
            run: run.to_owned(),
            run_id: marker.run_id.clone(),
            made_at,
            attempt: 0,
            began_at: made_at.as_duration().as_secs_f64(),
            first_step: 0,
            config: config.clone(),
        })
    }
}

/// A place that lines are written to.
pub trait Sink {
    /// Takes a line.
    ///
    /// # Errors
    /// When the sink is of no use any more.
    fn write(&mut self, line: &Line) -> Result<(), TrainerError>;

    /// Ends the run in it; 0 is the exit code of one that ended well.
    ///
    /// # Errors
    /// When what was taken may not all be there.
    fn finish(&mut self, exit_code: i32) -> Result<(), TrainerError>;
}

/// Opens a sink, in the sink's own thread.
pub type Open = Box<dyn FnOnce() -> Result<Box<dyn Sink>, TrainerError> + Send>;

/// The sinks of a running run. When it is dropped without [`Tracker::finish`], the run counts as failed.
#[derive(Debug)]
pub struct Tracker {
    feeds: Vec<Feed>,
    exit_code: Arc<AtomicI32>,
}

#[derive(Debug)]
struct Feed {
    name: &'static str,
    /// None once the sink is dead.
    queue: Option<SyncSender<Arc<str>>>,
    thread: Option<JoinHandle<Result<(), TrainerError>>>,
    dropped: u64,
}

/// Starts the sinks that the config names.
pub fn start(config: &TrackingConfig, about: &About) -> Tracker {
    let opener = |format: &Format| -> (&'static str, Open) {
        let (format, config, about) = (*format, config.clone(), about.clone());
        (format.name(), Box::new(move || open(format, &config, &about)))
    };
    Tracker::new(config.style, config.sinks.iter().map(opener).collect())
}

fn open(format: Format, config: &TrackingConfig, about: &About) -> Result<Box<dyn Sink>, TrainerError> {
    // Lines of this launch come through the queue, also those that are in the file by now.
    let made_at = about.made_at.as_duration().as_secs_f64();
    let earlier = line::read(&about.run, config.style, made_at, about.first_step)?;
    Ok(match format {
        Format::Tensorboard => Box::new(EventFile::open(about, &earlier)?),
        Format::Wandb => Box::new(OfflineRun::open(about, &config.wandb, &earlier)?),
    })
}

impl Tracker {
    /// Starts a thread a sink.
    pub fn new(style: Style, sinks: Vec<(&'static str, Open)>) -> Self {
        let exit_code = Arc::new(AtomicI32::new(1));
        let feed = |(name, open): (&'static str, Open)| {
            let (queue, lines) = sync_channel(QUEUE);
            let exit_code = exit_code.clone();
            let work = move || work(&lines, open, style, &exit_code);
            let thread = thread::Builder::new().name(format!("track-{name}")).spawn(work);
            // Without a thread the queue has no reader, which the first offer tells.
            Feed { name, queue: Some(queue), thread: thread.ok(), dropped: 0 }
        };
        let feeds = sinks.into_iter().map(feed).collect();
        Self { feeds, exit_code }
    }

    /// Offers a line of `metrics.jsonl` to every sink, without waiting; returns what the user should be told.
    pub fn offer(&mut self, line: &str) -> Vec<String> {
        if self.feeds.is_empty() {
            return Vec::new();
        }
        let line: Arc<str> = line.into();
        self.feeds.iter_mut().filter_map(|feed| feed.offer(&line)).collect()
    }

    /// Ends a run that went well, waiting for its sinks no longer than `patience`; returns what the user should be told.
    pub fn finish(mut self, patience: Duration) -> Vec<String> {
        self.exit_code.store(0, Ordering::Release);
        self.close(patience)
    }

    fn close(&mut self, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        let mut feeds = std::mem::take(&mut self.feeds);
        for feed in &mut feeds {
            feed.queue = None;
        }
        let busy = |feeds: &[Feed]| feeds.iter().flat_map(|f| &f.thread).any(|thread| !thread.is_finished());
        while busy(&feeds) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        feeds.into_iter().filter_map(Feed::end).collect()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // The run has an error of its own to tell.
        self.close(PATIENCE);
    }
}

/// What a user may do about lines that a sink has not got.
const REMEDY: &str = "`trainer track RUN --backfill` writes them afterwards";

impl Feed {
    fn offer(&mut self, line: &Arc<str>) -> Option<String> {
        let queue = self.queue.as_ref()?;
        match queue.try_send(line.clone()) {
            Ok(()) => None,
            Err(TrySendError::Full(_)) => {
                self.dropped += 1;
                let Self { name, dropped, .. } = self;
                (*dropped == 1).then(|| {
                    format!(
                        "tracking: {name} is behind by {QUEUE} lines and loses some from here on; {REMEDY}"
                    )
                })
            }
            Err(TrySendError::Disconnected(_)) => {
                self.queue = None;
                Some(format!("tracking: {}; the run goes on without it, {REMEDY}", self.death()))
            }
        }
    }

    /// Why the sink is dead; its thread has ended, or is about to.
    fn death(&mut self) -> String {
        let why = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(()))) => "ended early".to_owned(),
            Some(Ok(Err(error))) => format!("failed: {error}"),
            Some(Err(_)) => "failed: a fault of the program itself".to_owned(),
            None => "failed: it got no thread".to_owned(),
        };
        format!("{} {why}", self.name)
    }

    /// What is to be told at the end, of a sink that was told to end.
    fn end(mut self) -> Option<String> {
        let name = self.name;
        match &self.thread {
            None => None,
            Some(thread) if !thread.is_finished() => {
                Some(format!("tracking: {name} is not done with its lines and is left behind; {REMEDY}"))
            }
            Some(_) => match self.thread.take().map(JoinHandle::join) {
                Some(Ok(Ok(()))) if self.dropped == 0 => None,
                Some(Ok(Ok(()))) => Some(format!("tracking: {name} lost {} lines; {REMEDY}", self.dropped)),
                Some(Ok(Err(error))) => Some(format!("tracking: {name} failed: {error}; {REMEDY}")),
                _ => Some(format!("tracking: {name} failed: a fault of the program itself; {REMEDY}")),
            },
        }
    }
}

/// A sink's thread: ends when the run does, or with the sink.
fn work(
    lines: &Receiver<Arc<str>>,
    open: Open,
    style: Style,
    exit_code: &AtomicI32,
) -> Result<(), TrainerError> {
    let mut sink = open()?;
    for text in lines {
        let line = Line::parse(&text, style, 0.0).map_err(TrainerError::Internal)?;
        sink.write(&line)?;
    }
    sink.finish(exit_code.load(Ordering::Acquire))
}

#[cfg(test)]
mod tests;
