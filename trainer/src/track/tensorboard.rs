//! TensorBoard's event files: protobuf events, each framed by its length and by masked CRC-32C of length and event.
//!
//! An attempt writes a file of its own. That of a resumed run begins with a session's start at its first step, on which
//! readers drop what earlier files hold of that step and of later ones.

use std::path::{Path, PathBuf};

use parl_rollout::durable::{self, Growing};
use prost::Message;

use super::line::Line;
use super::{About, Sink};
use crate::error::TrainerError;

/// What readers know an event file by, and what sorts files by their time.
const PREFIX: &str = "events.out.tfevents.";
/// The value of `SessionLog.status` for a start.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    pub session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Scalar {
    #[prost(string, tag = "1")]
    pub tag: String,
    // Optional, so that a zero is written too.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// The checksum of a frame's part: rotated and moved, so that a checksum of data that holds checksums is a sound one.
pub(super) fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn frame(event: &Event, out: &mut Vec<u8>) {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(&data);
    out.extend(masked_crc(&data).to_le_bytes());
}

/// The numbers of a line; what is no number has no place in an event file.
fn event(line: &Line) -> Event {
    let scalar = |(tag, value): &(String, serde_json::Value)| {
        value.as_f64().map(|value| Scalar { tag: tag.clone(), simple_value: Some(value as f32) })
    };
    let value = line.values.iter().filter_map(scalar).collect();
    let summary = Some(Summary { value });
    Event { wall_time: line.unix_seconds, step: line.step as i64, summary, ..Event::default() }
}

/// An event file of a run.
#[derive(Debug)]
pub struct EventFile(Growing);

/// The run's event files, oldest first.
fn files(run: &Path) -> Result<Vec<PathBuf>, TrainerError> {
    let folder = run.join("tensorboard");
    let names = durable::names(&folder)?;
    Ok(names.into_iter().filter(|name| name.starts_with(PREFIX)).map(|name| folder.join(name)).collect())
}

impl EventFile {
    /// Begins the file of an attempt; with `earlier` lines where no file has them yet.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(about: &About, earlier: &[Line]) -> Result<Self, TrainerError> {
        let earlier = if files(&about.run)?.is_empty() { earlier } else { &[] };
        Self::begin(about, earlier)
    }

    /// Puts one file with all the `lines` in the place of what is there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn replace(about: &About, lines: &[Line]) -> Result<Self, TrainerError> {
        let old = files(&about.run)?;
        let new = Self::begin(about, lines)?;
        let path = path(about);
        for file in old.iter().filter(|file| **file != path) {
            durable::remove(file)?;
        }
        Ok(new)
    }

    fn begin(about: &About, lines: &[Line]) -> Result<Self, TrainerError> {
        let mut head = Vec::new();
        let wall_time = about.began_at;
        frame(
            &Event { wall_time, file_version: Some("brain.Event:2".to_owned()), ..Event::default() },
            &mut head,
        );
        if about.attempt > 0 {
            let session_log = Some(SessionLog { status: START });
            frame(
                &Event { wall_time, step: about.first_step as i64, session_log, ..Event::default() },
                &mut head,
            );
        }
        for line in lines {
            frame(&event(line), &mut head);
        }
        durable::create_dir(&about.run.join("tensorboard"))?;
        Ok(Self(Growing::begin(&path(about), &head)?))
    }
}

fn path(about: &About) -> PathBuf {
    let name = format!("{PREFIX}{:010}.parl.{}", about.began_at as u64, about.attempt);
    about.run.join("tensorboard").join(name)
}

impl Sink for EventFile {
    fn write(&mut self, line: &Line) -> Result<(), TrainerError> {
        let mut bytes = Vec::new();
        frame(&event(line), &mut bytes);
        Ok(self.0.append(&bytes)?)
    }

    fn finish(&mut self, _exit_code: i32) -> Result<(), TrainerError> {
        Ok(self.0.sync()?)
    }
}
