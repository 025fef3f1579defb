//! Where an exported episode is from.

/// Our name and version, as every format has it.
pub const PRODUCER: &str = concat!("parl ", env!("CARGO_PKG_VERSION"));

/// The run and the step of an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The run's name.
    pub run_id: &'a str,
    /// The training step, from 0.
    pub step: u32,
}
