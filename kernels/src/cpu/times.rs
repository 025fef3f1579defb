//! Where the time of passes goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A part of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Products with the weights, the head's among them.
    Products,
    /// Attention.
    Attention,
    /// Embeddings, norms, rotations, keys and values written, gates.
    Elements,
    /// Drawing from logits.
    Draws,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Products, Self::Attention, Self::Elements, Self::Draws];

    /// Its name in a bench's answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Attention => "attention",
            Self::Elements => "elements",
            Self::Draws => "draws",
        }
    }
}

/// Nanoseconds of each part, summed over the threads that ran a pass's rows; what they share out inside of a part is
/// counted once, by the clock.
#[derive(Debug, Default)]
pub struct Times([AtomicU64; Part::ALL.len()]);

impl Times {
    /// Seconds of each part of [`Part::ALL`] since the backend was made.
    pub fn seconds(&self) -> [f64; Part::ALL.len()] {
        self.0.each_ref().map(|nanoseconds| nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9)
    }
}

/// Gives the time since it was last asked to the part that took it.
pub(super) struct Watch<'a> {
    times: &'a Times,
    since: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn start(times: &'a Times) -> Self {
        Self { times, since: Instant::now() }
    }

    pub(super) fn spent(&mut self, part: Part) {
        let now = Instant::now();
        let nanoseconds = (now - self.since).as_nanos() as u64;
        self.times.0[part as usize].fetch_add(nanoseconds, Ordering::Relaxed);
        self.since = now;
    }
}
