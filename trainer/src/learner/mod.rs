//! The learner: the model with autograd, objectives, the optimizer. The one place that knows libtorch.
//!
//! What samples begin with alike goes through the layers once (`packing`), and no token is padding. Each micro-batch is
//! computed on one libtorch thread; gradients are summed in a fixed order. So the bits of an update depend neither on the
//! number of workers nor on their luck.

mod attention;
mod by_hand;
pub mod config;
mod config_json;
mod head;
mod lease;
mod micro_batch;
mod model;
mod objective;
mod optimizer;
mod packing;
mod place;
mod qk_clip;
mod report;
mod shim;
mod state;
mod step;
mod weights;

pub use config_json::{config_json, shape_of};
pub use model::Params;
pub use objective::{Aggregation, Clip, Objective, Ratio};
pub use optimizer::{AdamW, Muon, Optimizer};
pub use place::Place;
pub use report::StepReport;
pub use step::{Learner, Sample};
pub use weights::{export, import, initial, widened};

use thiserror::Error;

/// Errors of the learner.
#[derive(Debug, Error)]
pub enum LearnerError {
    /// libtorch refused or panicked.
    #[error("libtorch: {0}")]
    Torch(String),
    /// Weights on disk are not those of the model.
    #[error("weights: {0}")]
    Weights(String),
    /// Something is not a finite number; nothing was changed.
    #[error("{what} is {value}: the update was refused and nothing was changed")]
    NotFinite {
        /// Which value.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// A card has no room for what the learner wants.
    #[error("memory: {0}; it was for the learner: lower learner.micro_batch_tokens")]
    Memory(String),
    /// Samples that cannot be trained on.
    #[error("samples: {0}")]
    Samples(String),
    /// The kernels refused a lease.
    #[error(transparent)]
    Kernel(#[from] parl_kernels::KernelError),
}

/// Runs libtorch code whose calls panic on errors, and gives the panic back as an error.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, LearnerError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let text = text.unwrap_or_else(|| "a panic without a message".to_owned());
        let line = text.lines().next().unwrap_or_default().to_owned();
        if line.contains("CUDA out of memory") {
            LearnerError::Memory(line)
        } else {
            LearnerError::Torch(line)
        }
    })
}

#[cfg(test)]
mod tests;
