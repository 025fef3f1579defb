//! What can go wrong in a rollout, besides what the policy itself does (that is an observation, not an error).

use std::path::PathBuf;

use thiserror::Error;

/// Errors of this crate.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// A file operation failed.
    #[error("{path}: {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as in "cannot write".
        action: &'static str,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file from outside is not what it should be.
    #[error("{path}:{line}: {message}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Line (JSONL) or row (Parquet), from 1.
        line: u64,
        /// What is wrong with it, naming key and bound.
        message: String,
    },
    /// A file of ours is damaged or incomplete.
    #[error("{path}: {message}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A setting is out of bounds, or two do not fit each other.
    #[error("{key}: {message}")]
    Config {
        /// Key path in the YAML.
        key: String,
        /// The value and its bound.
        message: String,
    },
    /// The tokenizer cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The search index failed.
    #[error("search index: {0}")]
    Index(String),
    /// The inference backend refused or failed.
    #[error(transparent)]
    Kernel(#[from] parl_kernels::KernelError),
    /// Arrow or Parquet refused.
    #[error("trajectory log: {0}")]
    Log(String),
    /// The rules between the parts of a rollout were broken: a bug of ours.
    #[error("internal: {0}")]
    Internal(String),
}
