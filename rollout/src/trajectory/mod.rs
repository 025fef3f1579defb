//! The trajectory log: what every episode did, as five Parquet tables under one manifest a step.
//!
//! Arrow and Parquet are used here and nowhere else.

mod columns;
pub mod completions;
pub mod log;
pub mod manifest;
mod read;
pub mod record;
mod segment;
pub mod table_in;
mod tables;

pub use tables::Table;

#[cfg(test)]
mod tests;
