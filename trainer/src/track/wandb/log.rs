//! The format of the W&B client's offline file: protobuf records in a log like LevelDB's (blocks of 32 KiB, records cut
//! into chunks that do not cross blocks, CRC-32 of each), behind a header of seven bytes.

use prost::Message;

const BLOCK: usize = 32 * 1024;
/// CRC (4 bytes), length (2), kind (1), little-endian.
const CHUNK_HEAD: usize = 7;
/// Name, magic number and version of the format.
const HEAD: [u8; 7] = *b":W&B\xe1\xbe\x00";

#[derive(Clone, PartialEq, Message)]
pub(in crate::track) struct Record {
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
pub(in crate::track) struct Header {
    #[prost(message, optional, tag = "1")]
    pub version_info: Option<VersionInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(in crate::track) struct VersionInfo {
    #[prost(string, tag = "1")]
    pub producer: String,
    #[prost(string, tag = "2")]
    pub min_consumer: String,
}

#[derive(Clone, PartialEq, Message)]
pub(in crate::track) struct Run {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub entity: String,
    #[prost(string, tag = "3")]
    pub project: String,
    #[prost(message, optional, tag = "4")]
    pub config: Option<Items>,
    #[prost(string, tag = "6")]
    pub group: String,
    #[prost(string, tag = "8")]
    pub display_name: String,
    #[prost(string, repeated, tag = "10")]
    pub tags: Vec<String>,
    #[prost(message, optional, tag = "17")]
    pub start_time: Option<Time>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(in crate::track) struct Time {
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `ConfigRecord` and `SummaryRecord`, which are alike on the wire.
#[derive(Clone, PartialEq, Message)]
pub(in crate::track) struct Items {
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<Item>,
}

/// `ConfigItem`, `SummaryItem` and `HistoryItem`, which are alike on the wire.
#[derive(Clone, PartialEq, Message)]
pub(in crate::track) struct Item {
    // As a path of one name: a plain `key` would be cut at its dots.
    #[prost(string, repeated, tag = "2")]
    pub nested_key: Vec<String>,
    #[prost(string, tag = "16")]
    pub value_json: String,
}

#[derive(Clone, PartialEq, Message)]
pub(in crate::track) struct History {
    #[prost(message, repeated, tag = "1")]
    pub item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub step: Option<HistoryStep>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(in crate::track) struct HistoryStep {
    #[prost(int64, tag = "1")]
    pub num: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(in crate::track) struct Exit {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(int32, tag = "2")]
    pub runtime: i32,
}

/// Appends a record's chunks to `out`, the file having `written` bytes before `out`.
pub(in crate::track) fn frame(written: usize, record: &[u8], out: &mut Vec<u8>) {
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

/// What is on the way into a file.
#[derive(Debug)]
pub(super) struct Log {
    written: usize,
    records: i64,
    out: Vec<u8>,
}

impl Log {
    /// Begins a file.
    pub(super) fn begin() -> Self {
        Self { written: 0, records: 0, out: HEAD.to_vec() }
    }

    /// Adds a record, under the next number.
    pub(super) fn put(&mut self, record: Record) {
        self.records += 1;
        frame(self.written, &Record { num: self.records, ..record }.encode_to_vec(), &mut self.out);
    }

    /// Takes what is to be written to the file's end.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.written += self.out.len();
        std::mem::take(&mut self.out)
    }
}

/// The highest step in a file, as far as it can be read.
pub(super) fn last_step(bytes: &[u8]) -> Option<u64> {
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
