//! The W&B client's offline file, which `wandb sync` uploads: protobuf records in a log like LevelDB's (blocks of
//! 32 KiB, records cut into chunks that do not cross blocks, CRC-32 of each), behind a header of seven bytes.
//!
//! Uploading appends rows to what the server has of a run. So a resumed run leaves files alone that were uploaded, and
//! makes one file in the place of those that were not, with the steps that the uploaded ones have not.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parl_rollout::durable::{self, Growing};
use prost::Message;
use serde_json::Value;

use super::config::WandbConfig;
use super::line::Line;
use super::{About, Sink};
use crate::error::TrainerError;

const BLOCK: usize = 32 * 1024;
/// CRC (4 bytes), length (2), kind (1), little-endian.
const CHUNK_HEAD: usize = 7;
/// Name, magic number and version of the format.
const HEAD: [u8; 7] = *b":W&B\xe1\xbe\x00";
/// The oldest client that reads what we write; the client itself names this one.
const MIN_CONSUMER: &str = "0.70.0";

#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    #[prost(int64, tag = "1")]
    pub num: i64,
    #[prost(message, optional, tag = "2")]
    pub history: Option<History>,
    #[prost(message, optional, tag = "3")]
    pub summary: Option<Items>,
    #[prost(message, optional, tag = "17")]
    pub run: Option<Run>,
    #[prost(message, optional, tag = "18")]
    pub exit: Option<Exit>,
    #[prost(message, optional, tag = "21")]
    pub header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    pub version_info: Option<VersionInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionInfo {
    #[prost(string, tag = "1")]
    pub producer: String,
    #[prost(string, tag = "2")]
    pub min_consumer: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub run_id: String,
    #[prost(string, tag = "2")]
    pub entity: String,
    #[prost(string, tag = "3")]
    pub project: String,
    #[prost(message, optional, tag = "4")]
    pub config: Option<Items>,
    #[prost(string, tag = "6")]
    pub run_group: String,
    #[prost(string, tag = "8")]
    pub display_name: String,
    #[prost(string, repeated, tag = "10")]
    pub tags: Vec<String>,
    #[prost(message, optional, tag = "17")]
    pub start_time: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `ConfigRecord` and `SummaryRecord`, which are alike on the wire.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Items {
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<Item>,
}

/// `ConfigItem`, `SummaryItem` and `HistoryItem`, which are alike on the wire.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    // As a path of one name: a plain `key` would be cut at its dots.
    #[prost(string, repeated, tag = "2")]
    pub nested_key: Vec<String>,
    #[prost(string, tag = "16")]
    pub value_json: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub step: Option<HistoryStep>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct HistoryStep {
    #[prost(int64, tag = "1")]
    pub num: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(int32, tag = "2")]
    pub runtime: i32,
}

/// Appends a record's chunks to `out`, the file having `written` bytes before `out`.
pub(super) fn frame(written: usize, record: &[u8], out: &mut Vec<u8>) {
    let mut rest = record;
    let mut first = true;
    loop {
        let room = BLOCK - (written + out.len()) % BLOCK;
        if room < CHUNK_HEAD {
            out.resize(out.len() + room, 0);
            continue;
        }
        let (chunk, after) = rest.split_at(rest.len().min(room - CHUNK_HEAD));
        let last = after.is_empty();
        let kind: u8 = match (first, last) {
            (true, true) => 1,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&[kind]);
        crc.update(chunk);
        out.extend(crc.finalize().to_le_bytes());
        out.extend((chunk.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend(chunk);
        if last {
            return;
        }
        (rest, first) = (after, false);
    }
}

/// What is on the way into the file.
#[derive(Debug, Default)]
struct Log {
    written: usize,
    records: i64,
    out: Vec<u8>,
}

impl Log {
    fn put(&mut self, record: Record) {
        self.records += 1;
        frame(self.written, &Record { num: self.records, ..record }.encode_to_vec(), &mut self.out);
    }

    fn take(&mut self) -> Vec<u8> {
        self.written += self.out.len();
        std::mem::take(&mut self.out)
    }
}

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

/// The highest step in a file, as far as it can be read.
fn last_step(bytes: &[u8]) -> Option<u64> {
    let (mut at, mut record, mut last) = (HEAD.len(), Vec::new(), None);
    loop {
        let room = BLOCK - at % BLOCK;
        if room < CHUNK_HEAD {
            at += room;
            continue;
        }
        let Some(&[_, _, _, _, low, high, kind]) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
            return last;
        };
        at += CHUNK_HEAD;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some(chunk) = bytes.get(at..at + length) else { return last };
        at += length;
        if matches!(kind, 1 | 2) {
            record.clear();
        }
        record.extend_from_slice(chunk);
        if matches!(kind, 1 | 4) {
            let step = Record::decode(&record[..]).ok().and_then(|record| record.history?.step);
            last = last.max(step.map(|step| step.num as u64));
        }
    }
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
        let mut log = Log { out: HEAD.to_vec(), ..Log::default() };
        let producer = concat!("parl ", env!("CARGO_PKG_VERSION")).to_owned();
        let version_info = Some(VersionInfo { producer, min_consumer: MIN_CONSUMER.to_owned() });
        log.put(Record { header: Some(Header { version_info }), ..Record::default() });
        let sections = about.config.as_object().into_iter().flatten();
        let run = Run {
            run_id: id,
            entity: told.entity.clone().unwrap_or_default(),
            project: told.project.clone(),
            config: Some(Items { update: sections.map(|(name, value)| item(name, value)).collect() }),
            run_group: told.group.clone().unwrap_or_default(),
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
        lines.iter().for_each(|line| run.put(line));
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
