//! PARL's rewards as pure functions: task metrics, bonuses, critical steps, schedules, shaping, advantages.
//!
//! No IO, no clock, no randomness, no tensors. Every formula is from the method's sources as the project's
//! documents state them; where the sources leave something open, the doc comment says "choice".

pub mod advantage;
pub mod config;
pub mod critical;
pub mod finish;
pub mod metrics;
pub mod parallel;
pub mod schedule;
pub mod shaping;
pub mod toggle;

/// One sub-task that was assigned, as the bonuses see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment<'a> {
    /// The stage that it ran in.
    pub stage: u32,
    /// What the sub-agent was asked.
    pub prompt: &'a str,
    /// It gave a final message within its limits and without error.
    pub finished: bool,
    /// Environment calls that it made.
    pub env_calls: u32,
}
