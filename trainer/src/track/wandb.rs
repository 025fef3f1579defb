//! The W&B client's offline file, which `wandb sync` uploads: protobuf records in a log like LevelDB's (blocks of
//! 32 KiB, records cut into chunks that do not cross blocks, CRC-32 of each), behind a header of seven bytes.
//!
//! There is one such file a run. A resumed run makes it anew from `metrics.jsonl` before it adds to it, so it holds each
//! step once, whatever was lost or set aside.

use std::path::PathBuf;

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

fn row(line: &Line, made_at: f64) -> Record {
    let own = [
        ("_step", Value::from(line.step)),
        ("_timestamp", Value::from(line.unix_seconds)),
        ("_runtime", Value::from((line.unix_seconds - made_at).max(0.0))),
    ];
    let item = own.iter().map(|(name, value)| item(name, value));
    let item = item.chain(line.values.iter().map(|(name, value)| self::item(name, value))).collect();
    let step = Some(HistoryStep { num: line.step as i64 });
    Record { history: Some(History { item, step }), ..Record::default() }
}

/// The offline file of a run.
#[derive(Debug)]
pub struct OfflineRun {
    file: Growing,
    log: Log,
    made_at: f64,
    last: f64,
}

/// The run's id: eight letters that a project can tell its runs apart by, the same for all attempts.
fn id(about: &About) -> String {
    let text = format!("{} {}", about.run_id, about.made_at);
    blake3::hash(text.as_bytes()).to_hex().chars().take(8).collect()
}

/// The run's folder below `wandb/`, named as the client names it.
pub fn folder(about: &About) -> PathBuf {
    let time = about.made_at.strftime("%Y%m%d_%H%M%S");
    about.run.join(format!("wandb/offline-run-{time}-{}", id(about)))
}

impl OfflineRun {
    /// Begins the file with the `lines` that there are; one that is there is replaced, and counts as not uploaded.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(about: &About, told: &WandbConfig, lines: &[Line]) -> Result<Self, TrainerError> {
        let (folder, id, made_at) = (folder(about), id(about), about.made_at.as_duration());
        let mut log = Log { out: HEAD.to_vec(), ..Log::default() };
        let producer = concat!("parl ", env!("CARGO_PKG_VERSION")).to_owned();
        let version_info = Some(VersionInfo { producer, min_consumer: MIN_CONSUMER.to_owned() });
        log.put(Record { header: Some(Header { version_info }), ..Record::default() });
        let sections = about.config.as_object().into_iter().flatten();
        let run = Run {
            run_id: id.clone(),
            entity: told.entity.clone().unwrap_or_default(),
            project: told.project.clone(),
            config: Some(Items { update: sections.map(|(name, value)| item(name, value)).collect() }),
            run_group: told.group.clone().unwrap_or_default(),
            display_name: about.run_id.clone(),
            tags: told.tags.clone(),
            start_time: Some(Time { seconds: made_at.as_secs(), nanos: made_at.subsec_nanos() }),
        };
        log.put(Record { run: Some(run), ..Record::default() });
        let made_at = made_at.as_secs_f64();
        lines.iter().for_each(|line| log.put(row(line, made_at)));
        durable::create_dir(&folder.join("files"))?;
        let path = folder.join(format!("run-{id}.wandb"));
        for mark in ["synced", "syncstate"] {
            durable::remove(&folder.join(format!("run-{id}.wandb.{mark}")))?;
        }
        let file = Growing::begin(&path, &log.take())?;
        Ok(Self { file, log, made_at, last: lines.last().map_or(made_at, |line| line.unix_seconds) })
    }
}

impl Sink for OfflineRun {
    fn write(&mut self, line: &Line) -> Result<(), TrainerError> {
        self.last = line.unix_seconds;
        self.log.put(row(line, self.made_at));
        Ok(self.file.append(&self.log.take())?)
    }

    fn finish(&mut self, exit_code: i32) -> Result<(), TrainerError> {
        let runtime = (self.last - self.made_at).max(0.0) as i32;
        self.log.put(Record { exit: Some(Exit { exit_code, runtime }), ..Record::default() });
        self.file.append(&self.log.take())?;
        Ok(self.file.sync()?)
    }
}
