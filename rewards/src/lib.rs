//! PARL's rewards as pure functions: task metrics, bonuses, critical steps, schedules, shaping, advantages.
//!
//! No IO, no clock, no randomness, no tensors.

pub mod metrics;
