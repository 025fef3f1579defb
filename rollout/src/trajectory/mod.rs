//! The trajectory log: what every episode did, as Parquet tables under one manifest a step.

pub mod record;
pub mod table_in;
