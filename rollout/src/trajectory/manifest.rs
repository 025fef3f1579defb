//! A step's manifest: which files belong to it, how many rows, which bytes. Its appearance commits the step.

use serde::{Deserialize, Serialize};

use crate::RolloutError;
use std::path::Path;

/// Version of the tables' layout; minor versions only add nullable columns.
pub const SCHEMA_VERSION: &str = "1.0";

/// A file of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// The table.
    pub table: String,
    /// Path below the log's folder.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes, hex.
    pub blake3: String,
}

/// A step's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: String,
    /// The run.
    pub run_id: String,
    /// Launch of the run that wrote it.
    pub attempt: u32,
    /// The training step.
    pub train_step: u32,
    /// Episodes in it.
    pub episodes: u64,
    /// BLAKE3 over all that is not a time, a run's name or an attempt: equal for equal rollouts.
    pub canonical_blake3: String,
    /// The five files.
    pub files: Vec<FileEntry>,
    /// BLAKE3 of this manifest with this field empty.
    pub self_blake3: String,
}

impl Manifest {
    fn own_hash(&self) -> Result<String, RolloutError> {
        let blank = Self { self_blake3: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&blank).map_err(|e| RolloutError::Log(e.to_string()))?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    /// The file's bytes, with the manifest's own hash filled in.
    ///
    /// # Errors
    /// [`RolloutError::Log`] when it cannot be encoded.
    pub fn seal(mut self) -> Result<(Self, Vec<u8>), RolloutError> {
        self.self_blake3 = self.own_hash()?;
        let mut bytes = serde_json::to_vec_pretty(&self).map_err(|e| RolloutError::Log(e.to_string()))?;
        bytes.push(b'\n');
        Ok((self, bytes))
    }

    /// Reads a manifest back.
    ///
    /// # Errors
    /// [`RolloutError::Corrupt`] when it is not one, is damaged, or is from a newer layout.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, RolloutError> {
        let corrupt = |message: String| RolloutError::Corrupt { path: path.to_owned(), message };
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| corrupt(format!("not a step's manifest: {e}")))?;
        if manifest.self_blake3 != manifest.own_hash()? {
            return Err(corrupt("the manifest's own hash does not match: the file is damaged".into()));
        }
        let major = |version: &str| version.split('.').next().map(str::to_owned);
        if major(&manifest.schema_version) != major(SCHEMA_VERSION) {
            return Err(corrupt(format!(
                "schema version {} was written by another release, this one reads {SCHEMA_VERSION}",
                manifest.schema_version
            )));
        }
        Ok(manifest)
    }
}
