//! Rollouts: the swarm of agents, policies, tools, tasks and the trajectory log.
//!
//! Decisions are pure (`swarm`); files and the index are at the edge. This
//! crate never touches the learner, and nothing below it knows what an agent is.

// clippy.toml: tests write and damage files as they like.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod config;
pub mod dialect;
pub mod durable;
pub mod engine;
mod error;
pub mod policy;
pub mod swarm;
pub mod tasks;
pub mod tools;
pub mod trajectory;

pub use error::RolloutError;
