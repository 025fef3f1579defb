//! The world's own random numbers: counter-based, so that any task can be drawn without those before it.

/// What a stream of numbers is for; purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Making names, values and links.
    World = 1,
    /// Document ids.
    Ids = 2,
    /// Wording of documents.
    Prose = 3,
    /// Tasks to train on.
    TrainTasks = 4,
    /// Held-out tasks.
    HeldoutTasks = 5,
}

/// Numbers of one (seed, purpose, index), in order.
#[derive(Debug, Clone)]
pub(super) struct Draws {
    key: u64,
    counter: u64,
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood, OOPSLA'14), a bijection with full avalanche.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// `SplitMix64`'s increment: 2^64 over the golden ratio.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draws {
    /// The numbers of `index` under `seed`, for `purpose`.
    pub(super) fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let of_purpose = mix(mix(seed).wrapping_add((purpose as u64).wrapping_mul(STRIDE)));
        Self { key: mix(of_purpose.wrapping_add(index.wrapping_mul(STRIDE))), counter: 0 }
    }

    fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        mix(self.key.wrapping_add(self.counter.wrapping_mul(STRIDE)))
    }

    /// Uniform in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform below `bound` (at least 1); the bias of the multiply is below `bound`/2^64.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Uniform from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One of `options`, which is not empty.
    pub(super) fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }

    /// `count` distinct numbers below `bound` (`count` ≤ `bound`), in random order: Floyd's sampling, shuffled.
    pub(super) fn distinct(&mut self, count: usize, bound: usize) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::with_capacity(count);
        for limit in bound - count..bound {
            let drawn = self.below(limit + 1);
            chosen.push(if chosen.contains(&drawn) { limit } else { drawn });
        }
        self.shuffle(&mut chosen);
        chosen
    }

    /// Fisher–Yates.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_the_key_and_repeat() {
        let first = |seed, purpose, index| Draws::new(seed, purpose, index).next();
        let base = first(1, Purpose::World, 5);
        assert_eq!(base, first(1, Purpose::World, 5));
        assert_ne!(base, first(2, Purpose::World, 5));
        assert_ne!(base, first(1, Purpose::Ids, 5));
        assert_ne!(base, first(1, Purpose::World, 6));
    }

    #[test]
    fn numbers_are_even_and_samples_distinct() {
        let mut draws = Draws::new(3, Purpose::World, 0);
        let mut counts = [0_u32; 7];
        (0..70_000).for_each(|_| counts[draws.below(7)] += 1);
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
        let mean = (0..10_000).map(|_| draws.unit()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        for count in 0..=9 {
            let mut sample = draws.distinct(count, 9);
            sample.sort_unstable();
            sample.dedup();
            assert!(sample.len() == count && sample.iter().all(|number| *number < 9));
        }
    }
}
