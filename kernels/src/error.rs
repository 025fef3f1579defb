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
}
