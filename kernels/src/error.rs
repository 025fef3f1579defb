//! What can go wrong in the kernels.

use thiserror::Error;

/// Errors of this crate.
#[derive(Debug, Error)]
pub enum KernelError {
    /// Sizes that do not fit each other or their bounds.
    #[error("model shape: {0}")]
    Shape(String),
    /// A weight is missing, of another shape or type, or not finite.
    #[error("weights: {0}")]
    Weights(String),
    /// A plan that the backend cannot run.
    #[error("plan: {0}")]
    Plan(String),
    /// Sampling parameters outside their bounds.
    #[error("sampling: {0}")]
    Sampling(String),
    /// A CUDA library is missing, or a call of one failed.
    #[error("CUDA: {0}")]
    Cuda(String),
    /// A CUDA source does not compile.
    #[error("kernels/cuda/{file} does not compile for {architecture}:\n{log}")]
    Compile {
        /// The source.
        file: String,
        /// For which cards, as `sm_90a`.
        architecture: String,
        /// What the compiler said, with file and line.
        log: String,
    },
    /// What does not fit into the card's memory, with the arithmetic.
    #[error("memory: {0}")]
    Memory(String),
}
