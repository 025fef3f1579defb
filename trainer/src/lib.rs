//! The trainer: config, the loop, the run's folder, reports. The binary `trainer` is a thin shell around it.

pub mod config;
