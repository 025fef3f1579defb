//! What can go wrong in the trainer, and the exit code that each gives.

use thiserror::Error;

use crate::config::ConfigErrors;

/// Errors of this crate.
#[derive(Debug, Error)]
pub enum TrainerError {
    /// The config or the command line.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The run's folder may not be used.
    #[error("{0}")]
    Folder(String),
    /// A run cannot be gone on with.
    #[error("resume: {0}")]
    Resume(String),
    /// The page of a run cannot be served.
    #[error("watch: {0}")]
    Watch(String),
    /// From a rollout, the log, or the disk.
    #[error(transparent)]
    Rollout(#[from] parl_rollout::RolloutError),
    /// From the learner.
    #[error(transparent)]
    Learner(#[from] crate::learner::LearnerError),
    /// A bug of ours.
    #[error("internal: {0}")]
    Internal(String),
}

impl TrainerError {
    /// The process's exit code (`trainer --help` lists them).
    pub fn exit_code(&self) -> u8 {
        use crate::learner::LearnerError as L;
        use parl_rollout::RolloutError as R;
        match self {
            Self::Config(_)
            | Self::Folder(_)
            | Self::Resume(_)
            | Self::Watch(_)
            | Self::Rollout(R::Config { .. }) => 2,
            Self::Learner(L::NotFinite { .. }) => 6,
            Self::Learner(L::Weights(_))
            | Self::Rollout(R::Row { .. } | R::Corrupt { .. } | R::Tokenizer(_) | R::Index(_)) => 4,
            Self::Rollout(R::Io { .. } | R::Log(_)) => 5,
            Self::Learner(_) | Self::Rollout(R::Kernel(_) | R::Internal(_)) | Self::Internal(_) => 1,
        }
    }
}
