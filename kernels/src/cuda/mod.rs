//! The CUDA kernels and what a host needs to run them. Libraries of CUDA are looked for at run time; where there are
//! none, that is an error to read, and the CPU backend works on.
//!
//! What was checked and measured on a card, and when, stands in `docs/gpu-measured.md`.

mod backend;
pub mod buckets;
pub mod cache;
pub mod card;
pub mod compile;
pub mod driver;
pub mod launches;
mod library;
pub mod memory;
mod model;
mod products;
pub mod resources;
pub mod sources;
pub mod step;

pub use backend::CudaBackend;
