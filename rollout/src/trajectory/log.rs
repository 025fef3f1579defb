//! The log of a run: steps are sealed one by one, verified before they are trusted, and set aside on resume.
//!
//! `trajectories/v1/<table>/step_000100/part-r0000-000.parquet`, and `trajectories/v1/manifests/step_000100.json`
//! whose rename is the commit of the step.

use std::path::{Path, PathBuf};

use super::Table;
use super::manifest::{FileEntry, Manifest, SCHEMA_VERSION};
use super::read;
use super::record::EpisodeRecord;
use super::segment;
use super::tables::{Keys, batch};
use crate::RolloutError;
use crate::durable;

/// What every file of the log says about its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogMeta {
    /// The run's name.
    pub run_id: String,
    /// Launch of the run, from 0.
    pub attempt: u32,
    /// BLAKE3 of the resolved config.
    pub config_blake3: String,
    /// Commit of the source, or `unknown`.
    pub git_commit: String,
    /// What is trained.
    pub model: String,
    /// BLAKE3 of the tokenizer.
    pub tokenizer_blake3: String,
}

impl LogMeta {
    fn pairs(&self, table: Table) -> Vec<(String, String)> {
        [
            ("schema_version", SCHEMA_VERSION),
            ("table", table.name()),
            ("run_id", &self.run_id),
            ("attempt", &self.attempt.to_string()),
            ("config_blake3", &self.config_blake3),
            ("git_commit", &self.git_commit),
            ("model", &self.model),
            ("tokenizer_blake3", &self.tokenizer_blake3),
            ("writer", concat!("parl ", env!("CARGO_PKG_VERSION"))),
        ]
        .map(|(key, value)| (format!("parl.{key}"), value.to_owned()))
        .to_vec()
    }
}

/// The log of a run, for its one writer and for readers.
#[derive(Debug, Clone)]
pub struct TrajectoryLog {
    root: PathBuf,
}

const MANIFEST: &str = ".json";

fn step_name(step: u32) -> String {
    format!("step_{step:06}")
}

fn step_number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("step_")?;
    name.strip_suffix(MANIFEST).unwrap_or(name).parse().ok()
}

impl TrajectoryLog {
    /// The log under a run's folder.
    pub fn new(run: &Path) -> Self {
        Self { root: run.join("trajectories").join("v1") }
    }

    fn manifest_path(&self, step: u32) -> PathBuf {
        self.root.join("manifests").join(format!("{}{MANIFEST}", step_name(step)))
    }

    /// Writes a step's five tables and seals them. Rows are sorted by (group, episode).
    ///
    /// # Errors
    /// [`RolloutError::Io`] or [`RolloutError::Log`]; the step is then not there for any reader. A sealed step is
    /// refused: it is never written again.
    pub fn write_step(
        &self,
        meta: &LogMeta,
        step: u32,
        records: &[EpisodeRecord],
    ) -> Result<Manifest, RolloutError> {
        if self.manifest_path(step).exists() {
            return Err(RolloutError::Log(format!("step {step} is sealed already")));
        }
        let mut records = records.to_vec();
        records.sort_by(|a, b| (&a.group_id, &a.episode_id).cmp(&(&b.group_id, &b.episode_id)));
        let keys = Keys { run_id: &meta.run_id, attempt: meta.attempt, train_step: step };
        let mut files = Vec::new();
        let mut parts = Vec::new();
        for table in Table::ALL {
            let rows = batch(table, &keys, &records, &meta.pairs(table))?;
            let bytes = segment::encode(table, &rows)?;
            let entry = FileEntry {
                table: table.name().to_owned(),
                path: format!("{}/{}/part-r0000-000.parquet", table.name(), step_name(step)),
                rows: rows.num_rows() as u64,
                bytes: bytes.len() as u64,
                blake3: blake3::hash(&bytes).to_hex().to_string(),
            };
            parts.push((self.root.join(&entry.path), bytes));
            files.push(entry);
        }
        let (manifest, bytes) = Manifest {
            schema_version: SCHEMA_VERSION.to_owned(),
            run_id: meta.run_id.clone(),
            attempt: meta.attempt,
            train_step: step,
            episodes: records.len() as u64,
            canonical_blake3: canonical_hash(&records)?,
            files,
            self_blake3: String::new(),
        }
        .seal()?;
        if let Err(error) = self.publish(step, &parts, &bytes) {
            // Best effort: what no manifest names is for no reader, and a full disk gets its room back.
            for (path, _) in &parts {
                let _ = durable::remove(path.parent().unwrap_or(path));
            }
            return Err(error);
        }
        Ok(manifest)
    }

    /// Writes a step's files, and then the manifest that vouches for them.
    fn publish(&self, step: u32, parts: &[(PathBuf, Vec<u8>)], manifest: &[u8]) -> Result<(), RolloutError> {
        for (path, bytes) in parts {
            durable::create_dir(path.parent().unwrap_or(&self.root))?;
            durable::write_atomic(path, bytes)?;
        }
        let path = self.manifest_path(step);
        durable::create_dir(path.parent().unwrap_or(&self.root))?;
        durable::write_atomic(&path, manifest)
    }

    /// Steps that are sealed, in order.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn sealed_steps(&self) -> Result<Vec<u32>, RolloutError> {
        let names = durable::names(&self.root.join("manifests"))?;
        Ok(names.iter().filter(|n| n.ends_with(MANIFEST)).filter_map(|n| step_number(n)).collect())
    }

    /// BLAKE3 of a step's manifest, another one once the step was written anew; `None` for a step that is not sealed.
    pub fn seal(&self, step: u32) -> Option<String> {
        durable::hash_file(&self.manifest_path(step)).ok().map(|(hash, _)| hash)
    }

    /// Checks every byte of a sealed step against its manifest.
    ///
    /// # Errors
    /// [`RolloutError::Corrupt`] naming the file, [`RolloutError::Io`] for one that is missing.
    pub fn verify(&self, step: u32) -> Result<Manifest, RolloutError> {
        let path = self.manifest_path(step);
        let manifest = Manifest::parse(&path, &durable::read(&path)?)?;
        if manifest.train_step != step {
            let message = format!("the manifest is of step {}, not {step}", manifest.train_step);
            return Err(RolloutError::Corrupt { path, message });
        }
        for file in &manifest.files {
            let path = self.root.join(&file.path);
            let (blake3, bytes) = durable::hash_file(&path)?;
            if (&blake3, bytes) != (&file.blake3, file.bytes) {
                let message = format!(
                    "the file is damaged: {bytes} bytes with hash {blake3}, the manifest says {} bytes with {}",
                    file.bytes, file.blake3
                );
                return Err(RolloutError::Corrupt { path, message });
            }
        }
        Ok(manifest)
    }

    /// Reads a sealed step's episodes back, as they were written, after [`Self::verify`].
    ///
    /// # Errors
    /// As [`Self::verify`]; [`RolloutError::Corrupt`] for a table that does not fit this release's layout.
    pub fn read_step(&self, step: u32) -> Result<Vec<EpisodeRecord>, RolloutError> {
        let manifest = self.verify(step)?;
        let path = |table: Table| {
            let of_table = |file: &&FileEntry| file.table == table.name();
            let file = manifest.files.iter().find(of_table).ok_or_else(|| RolloutError::Corrupt {
                path: self.manifest_path(step),
                message: format!("the manifest names no file of table {}", table.name()),
            })?;
            Ok(self.root.join(&file.path))
        };
        read::episodes(path)
    }

    /// Moves everything of steps after `last` (of all steps when `None`), and everything that no manifest
    /// names, to `quarantine`; returns the steps that were moved.
    ///
    /// # Errors
    /// [`RolloutError::Io`].
    pub fn quarantine_after(&self, last: Option<u32>, quarantine: &Path) -> Result<Vec<u32>, RolloutError> {
        let sealed = self.sealed_steps()?;
        let keep = |step: u32| last.is_some_and(|last| step <= last) && sealed.contains(&step);
        let mut moved = Vec::new();
        // Manifests first: a step without one is not there, whatever happens after.
        for folder in std::iter::once("manifests").chain(Table::ALL.map(Table::name)) {
            for name in durable::names(&self.root.join(folder))? {
                let step = step_number(&name);
                if step.is_some_and(keep) {
                    continue;
                }
                durable::relocate(&self.root.join(folder).join(&name), &quarantine.join(folder).join(&name))?;
                moved.extend(step);
            }
        }
        moved.sort_unstable();
        moved.dedup();
        Ok(moved)
    }
}

/// BLAKE3 over the records without times: equal seeds give equal hashes, on any day and in any attempt.
fn canonical_hash(records: &[EpisodeRecord]) -> Result<String, RolloutError> {
    let mut hasher = blake3::Hasher::new();
    for record in records {
        let mut plain = record.clone();
        plain.started_at_us = 0;
        for ms in [&mut plain.duration_ms, &mut plain.critical_ms, &mut plain.total_ms] {
            *ms = 0;
        }
        for agent in &mut plain.agents {
            (agent.t_start_ms, agent.t_end_ms) = (0, 0);
        }
        for step in &mut plain.steps {
            (step.t_queue_ms, step.t_start_ms, step.t_end_ms) = (0, 0, 0);
            for call in &mut step.tool_calls {
                (call.t_start_ms, call.t_end_ms) = (0, 0);
            }
        }
        // JSON prints every finite float so that it reads back to the same bits.
        let row = serde_json::to_vec(&plain).map_err(|e| RolloutError::Log(e.to_string()))?;
        hasher.update(&row).update(b"\n");
    }
    Ok(hasher.finalize().to_hex().to_string())
}
