//! A checkpoint's `MANIFEST`: which files belong to it, how long each is, and its BLAKE3.

use std::path::{Component, Path};

use parl_rollout::{RolloutError, durable};
use serde::{Deserialize, Serialize};

use crate::error::TrainerError;
use crate::run::folder::json_text;

const NAME: &str = "MANIFEST";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    bytes: u64,
    blake3: String,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    files: Vec<Entry>,
    /// Of `files` as compact JSON.
    self_blake3: String,
}

fn hash_of(files: &[Entry]) -> Result<String, TrainerError> {
    let bytes = serde_json::to_vec(files).map_err(|e| TrainerError::Internal(e.to_string()))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

impl Manifest {
    /// The manifest of `files`, paths below `folder`, as they are on the disk.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn of(folder: &Path, files: &[String]) -> Result<Self, TrainerError> {
        let mut entries = Vec::new();
        for path in files {
            let (blake3, bytes) = durable::hash_file(&folder.join(path))?;
            entries.push(Entry { path: path.clone(), bytes, blake3 });
        }
        let self_blake3 = hash_of(&entries)?;
        Ok(Self { files: entries, self_blake3 })
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn write(&self, folder: &Path) -> Result<(), TrainerError> {
        crate::run::folder::write_json(&folder.join(NAME), self)
    }

    /// Whether it names a file.
    pub(super) fn names(&self, path: &str) -> bool {
        self.files.iter().any(|entry| entry.path == path)
    }

    /// Reads a folder's manifest and checks every byte that it speaks of.
    ///
    /// # Errors
    /// Naming the file that is missing, damaged, or outside of the folder.
    pub(super) fn verified(folder: &Path) -> Result<Self, TrainerError> {
        let corrupt = |file: &str, message: String| {
            TrainerError::Rollout(RolloutError::Corrupt { path: folder.join(file), message })
        };
        let bytes = durable::read(&folder.join(NAME))?;
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|e| corrupt(NAME, format!("not a manifest: {e}")))?;
        if hash_of(&manifest.files)? != manifest.self_blake3 || bytes != json_text(&manifest)?.as_bytes() {
            return Err(corrupt(NAME, "the manifest's own hash does not match: it is damaged".to_owned()));
        }
        for entry in &manifest.files {
            let inside = Path::new(&entry.path).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside {
                return Err(corrupt(
                    NAME,
                    format!("`{}` is not a path inside of the checkpoint", entry.path),
                ));
            }
            let (blake3, bytes) = durable::hash_file(&folder.join(&entry.path))?;
            if (bytes, &blake3) != (entry.bytes, &entry.blake3) {
                let message = format!(
                    "the file is damaged: {bytes} bytes with hash {blake3}, the manifest says {} bytes with {}",
                    entry.bytes, entry.blake3
                );
                return Err(corrupt(&entry.path, message));
            }
        }
        Ok(manifest)
    }
}
