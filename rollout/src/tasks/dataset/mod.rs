//! Tasks and a corpus from JSONL or Parquet files; `docs/tasks.md` describes the columns. The first bad row is
//! refused with its file and line, before anything runs.

mod copied;
mod decomposition;
mod fields;
mod file;
mod row;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use parl_rewards::metrics::Metric;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Document, Split, Task, TaskSource};
use crate::RolloutError;

/// What `open` calls a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DocumentIds {
    /// The row's `doc_id`, unique in the file.
    #[default]
    Column,
    /// The number of the line (JSONL) or row (Parquet), from 1; `doc_id` is not read.
    Row,
}

/// How scripts ask the parts of a decomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Questions {
    /// As the file has them, searching for the part's title.
    #[default]
    Human,
    /// In words that are already there: the prompt, and then names out of what was found.
    Copied,
}

/// Tasks and a corpus from files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// Name in the log's `env_id`.
    pub name: String,
    /// The tasks: a `.jsonl` or `.parquet` file with the columns of docs/tasks.md.
    pub tasks: PathBuf,
    /// The documents that `search` and `open` see: a `.jsonl` or `.parquet` file with the columns of docs/tasks.md.
    pub corpus: PathBuf,
    /// What `open` calls a document: `column`, its `doc_id`, or `row`, its number in the file, for a corpus whose
    /// ids are missing or not unique.
    pub document_ids: DocumentIds,
    /// Metric of every task, whatever its row says; null leaves the rows' own.
    pub metric: Option<Metric>,
    /// Share of the tasks that are held out, by a hash of their ids, where their rows name no split. From 0 to 1.
    pub heldout_fraction: f64,
    /// How scripts, and the demonstrations of a warm start, ask the parts of a decomposition: `human`, as the file has
    /// them, searching for titles that a human knew; `copied`, by the prompt and then by names out of what was found,
    /// for a model that can copy and knows nothing.
    pub questions: Questions,
    /// Words that a tokenizer made for these tasks spells with one id each, the most frequent ones of the corpus and
    /// of the training tasks; all else is spelt in bytes. A model that is named brings its own tokenizer.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub vocabulary_words: u32,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self {
            name: "dataset".to_string(),
            tasks: PathBuf::new(),
            corpus: PathBuf::new(),
            document_ids: DocumentIds::Column,
            metric: None,
            heldout_fraction: 0.2,
            questions: Questions::Human,
            vocabulary_words: 4096,
        }
    }
}

impl DatasetConfig {
    /// What is out of bounds: the key below this section, and value and bound in words.
    pub fn validate(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| faults.push((key.to_string(), message));
        if self.name.trim().is_empty() {
            fault("name", "empty, must hold at least one visible character".to_string());
        }
        for (key, path) in [("tasks", &self.tasks), ("corpus", &self.corpus)] {
            if path.as_os_str().is_empty() {
                fault(key, "empty, must be the path of a .jsonl or .parquet file".to_string());
            }
        }
        if !(0.0..=1.0).contains(&self.heldout_fraction) {
            fault("heldout_fraction", format!("{} is not within 0 to 1", self.heldout_fraction));
        }
        faults
    }
}

/// The tasks and documents of a [`DatasetConfig`].
#[derive(Debug, Clone)]
pub struct DatasetSource {
    name: String,
    train: Vec<Task>,
    heldout: Vec<Task>,
    documents: Vec<Document>,
}

impl DatasetSource {
    /// Reads both files whole.
    ///
    /// # Errors
    /// [`RolloutError::Config`] for a setting out of bounds, [`RolloutError::Io`] and [`RolloutError::Corrupt`] for
    /// a file that cannot be read or holds no row, [`RolloutError::Row`] for the first bad row.
    pub fn open(config: &DatasetConfig) -> Result<Self, RolloutError> {
        if let Some((key, message)) = config.validate().into_iter().next() {
            return Err(RolloutError::Config { key, message });
        }
        let (heldout, train) =
            read_tasks(config)?.into_iter().partition(|task: &Task| task.split == Split::Heldout);
        Ok(Self { name: config.name.clone(), train, heldout, documents: read_documents(config)? })
    }

    fn side(&self, split: Split) -> &[Task] {
        match split {
            Split::Train => &self.train,
            Split::Heldout => &self.heldout,
        }
    }
}

fn read_tasks(config: &DatasetConfig) -> Result<Vec<Task>, RolloutError> {
    let mut tasks: Vec<Task> = Vec::new();
    let mut ids = HashSet::new();
    file::for_each_row(&config.tasks, &row::TASK_JSON_COLUMNS, &mut |_, row| {
        let mut task = row::task(&row, config.metric, config.heldout_fraction)?;
        if config.questions == Questions::Copied {
            copied::ask_in_copied_words(&task.prompt, &mut task.parts);
        }
        if !ids.insert(task.id.clone()) {
            return Err(format!("id: {:?} is used twice in this file", task.id));
        }
        tasks.push(task);
        Ok(())
    })?;
    not_empty(&config.tasks, tasks)
}

fn read_documents(config: &DatasetConfig) -> Result<Vec<Document>, RolloutError> {
    let mut documents: Vec<Document> = Vec::new();
    let mut ids = HashSet::new();
    file::for_each_row(&config.corpus, &[], &mut |number, row| {
        let document = row::document(number, &row, config.document_ids)?;
        if !ids.insert(document.id.clone()) {
            return Err(format!(
                "doc_id: {:?} is used twice in this file; document_ids: row would number documents",
                document.id
            ));
        }
        documents.push(document);
        Ok(())
    })?;
    not_empty(&config.corpus, documents)
}

fn not_empty<T>(path: &Path, rows: Vec<T>) -> Result<Vec<T>, RolloutError> {
    if rows.is_empty() {
        return Err(RolloutError::Corrupt { path: path.to_path_buf(), message: "holds no row".to_string() });
    }
    Ok(rows)
}

impl TaskSource for DatasetSource {
    /// The file's order, again and again. A side without tasks gives the other's, which keep their own split.
    fn task(&self, split: Split, index: u64) -> Task {
        let side = match (split, self.side(split)) {
            (Split::Train, []) => &self.heldout,
            (Split::Heldout, []) => &self.train,
            (_, side) => side,
        };
        side[(index % side.len() as u64) as usize].clone()
    }

    fn documents(&self) -> &[Document] {
        &self.documents
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn count(&self, split: Split) -> Option<u64> {
        Some(self.side(split).len() as u64)
    }
}
