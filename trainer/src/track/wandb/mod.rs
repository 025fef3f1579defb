//! The W&B client's offline files, which `wandb sync` uploads.
//!
//! Uploading appends rows to what the server has of a run. So a resumed run leaves files alone that were uploaded, and
//! makes one file in the place of those that were not, with the steps that the uploaded ones have not.

pub(super) mod log;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parl_rollout::durable::{self, Growing};
use serde_json::Value;

use super::config::WandbConfig;
use super::line::Line;
use super::{About, Sink};
use crate::error::TrainerError;
use log::{Exit, Header, History, HistoryStep, Item, Items, Log, Record, Run, Time, VersionInfo, last_step};

/// The oldest client that reads what we write; the client itself names this one.
const MIN_CONSUMER: &str = "0.70.0";

fn item(name: &str, value: &Value) -> Item {
    Item { nested_key: vec![name.to_owned()], value_json: value.to_string() }
}

/// A line's figures, with the client's own beside them.
fn items(line: &Line, made_at: f64) -> Vec<Item> {
    let own = [
        ("_step", Value::from(line.step)),
        ("_timestamp", Value::from(line.unix_seconds)),
        ("_runtime", Value::from((line.unix_seconds - made_at).max(0.0))),
    ];
    let own = own.iter().map(|(name, value)| item(name, value));
    own.chain(line.values.iter().map(|(name, value)| item(name, value))).collect()
}

/// The run's id: eight letters that a project can tell its runs apart by, the same for all launches.
fn id(about: &About) -> String {
    let text = format!("{} {}", about.run_id, about.made_at);
    blake3::hash(text.as_bytes()).to_hex().chars().take(8).collect()
}

/// The run's folders below `wandb/`, and which of them were uploaded, if only in part.
fn folders(about: &About, id: &str) -> Result<Vec<(PathBuf, bool)>, TrainerError> {
    let wandb = about.run.join("wandb");
    let ours = durable::names(&wandb)?.into_iter().filter(|name| name.ends_with(&format!("-{id}")));
    ours.map(|name| {
        let folder = wandb.join(name);
        let marks = ["synced", "syncstate"].map(|mark| folder.join(format!("run-{id}.wandb.{mark}")));
        Ok((folder, marks.iter().any(|mark| mark.exists())))
    })
    .collect()
}

/// The offline file of a launch.
#[derive(Debug)]
pub struct OfflineRun {
    folder: PathBuf,
    file: Growing,
    log: Log,
    made_at: f64,
    /// When the newest line was made.
    last: f64,
    /// First step that uploaded files have not.
    first_step: u64,
    rows: u64,
}

impl OfflineRun {
    /// Begins a file with those of the `lines` that no uploaded file has, in the place of the files that were not
    /// uploaded.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(about: &About, told: &WandbConfig, lines: &[Line]) -> Result<Self, TrainerError> {
        let id = id(about);
        let name = format!("run-{id}.wandb");
        let mut last = None;
        for (folder, uploaded) in folders(about, &id)? {
            if uploaded {
                last = last.max(last_step(&durable::read(&folder.join(&name))?));
            } else {
                durable::remove(&folder)?;
            }
        }
        let mut start = about.began_at;
        let folder_at = |seconds: f64| -> Result<PathBuf, TrainerError> {
            let time =
                Timestamp::from_second(seconds as i64).map_err(|e| TrainerError::Internal(e.to_string()))?;
            Ok(about.run.join(format!("wandb/offline-run-{}-{id}", time.strftime("%Y%m%d_%H%M%S"))))
        };
        let mut folder = folder_at(start)?;
        while folder.exists() {
            start += 1.0;
            folder = folder_at(start)?;
        }
        let mut log = Log::begin();
        let producer = concat!("parl ", env!("CARGO_PKG_VERSION")).to_owned();
        let version_info = Some(VersionInfo { producer, min_consumer: MIN_CONSUMER.to_owned() });
        log.put(Record { header: Some(Header { version_info }), ..Record::default() });
        let sections = about.config.as_object().into_iter().flatten();
        let run = Run {
            id,
            entity: told.entity.clone().unwrap_or_default(),
            project: told.project.clone(),
            config: Some(Items { update: sections.map(|(name, value)| item(name, value)).collect() }),
            group: told.group.clone().unwrap_or_default(),
            display_name: about.run_id.clone(),
            tags: told.tags.clone(),
            // The client uploads a run's files in the order of these.
            start_time: Some(Time { seconds: start as i64, nanos: (start.fract() * 1e9) as i32 }),
        };
        log.put(Record { run: Some(run), ..Record::default() });
        durable::create_dir(&folder.join("files"))?;
        let made_at = about.made_at.as_duration().as_secs_f64();
        let first_step = last.map_or(0, |step| step + 1);
        let file = Growing::begin(&folder.join(name), &log.take())?;
        let mut run = Self { folder, file, log, made_at, last: made_at, first_step, rows: 0 };
        for line in lines {
            run.put(line);
        }
        run.flush()?;
        Ok(run)
    }

    /// The folder to name to `wandb sync`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps that are in the file.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn put(&mut self, line: &Line) {
        self.last = line.unix_seconds;
        if line.step >= self.first_step {
            self.rows += 1;
            let item = items(line, self.made_at);
            let update = item.clone();
            let step = Some(HistoryStep { num: line.step as i64 });
            self.log.put(Record { history: Some(History { item, step }), ..Record::default() });
            // The server makes no summary of rows that are uploaded.
            self.log.put(Record { summary: Some(Items { update }), ..Record::default() });
        }
    }

    fn flush(&mut self) -> Result<(), TrainerError> {
        Ok(self.file.append(&self.log.take())?)
    }
}

impl Sink for OfflineRun {
    fn write(&mut self, line: &Line) -> Result<(), TrainerError> {
        self.put(line);
        self.flush()
    }

    fn finish(&mut self, exit_code: i32) -> Result<(), TrainerError> {
        let runtime = (self.last - self.made_at).max(0.0) as i32;
        self.log.put(Record { exit: Some(Exit { exit_code, runtime }), ..Record::default() });
        self.flush()?;
        Ok(self.file.sync()?)
    }
}
