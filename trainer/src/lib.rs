//! The trainer: config, the loop, the run's folder, reports. The binary `trainer` is a thin shell around it.

// clippy.toml: tests write and damage files as they like.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod checkpoint;
pub mod cli;
pub mod config;
mod error;
pub mod export;
pub mod learner;
pub mod report;
pub mod run;
pub mod sft;
pub mod terminal;
pub mod track;
pub mod transcript;

pub use error::TrainerError;
