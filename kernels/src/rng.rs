//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11), keyed, never stateful.

/// Names a random stream. Equal keys and counters give equal numbers on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RngKey {
    /// The run's seed.
    pub seed: u64,
    /// What the numbers are for.
    pub stream: Stream,
    /// Which episode (any stable number, usually a hash of its id).
    pub episode: u64,
    /// Which agent in the episode.
    pub agent: u32,
}

/// Purposes that must not share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Stream {
    /// Drawing tokens.
    Sample = 1,
    /// Drawing tasks.
    Tasks = 2,
    /// Making the world.
    World = 3,
    /// Initial weights.
    Init = 4,
    /// Injected faults.
    Faults = 5,
    /// Scripted policies' choices.
    Script = 6,
    /// Order of training data.
    Shuffle = 7,
}
