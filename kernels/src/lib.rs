//! The inference maths of PARL: weights, KV cache and tokens go in; sampled ids and log-probs come out.
//!
//! [`backend::Backend`] is the one door. The CPU backend is also the oracle that other backends
//! are tested against. This crate knows no text, no agents and no files.

pub mod backend;
pub mod cpu;
pub mod cuda;

mod error;
mod plan;
pub mod rng;

pub mod sampling;
pub mod shape;
pub mod weights;

pub use error::KernelError;
