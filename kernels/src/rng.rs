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

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32-10: four random words for a 128-bit counter under a 64-bit key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [
            (product1 >> 32) as u32 ^ c[1] ^ k[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ c[3] ^ k[1],
            product0 as u32,
        ];
    }
    c
}

impl RngKey {
    /// Stream and agent in a word: 8 bits are plenty for the streams, 24 for the agents of an episode.
    pub(crate) fn purpose(&self) -> u32 {
        (self.stream as u32) << 24 | (self.agent & 0x00FF_FFFF)
    }

    /// Four random words for one counter.
    pub fn block(&self, counter: u32) -> [u32; 4] {
        let counter = [counter, self.purpose(), self.episode as u32, (self.episode >> 32) as u32];
        philox4x32(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// A number in `[0, 1)` with 24 random bits.
    pub fn uniform_f32(&self, counter: u32) -> f32 {
        (self.block(counter)[0] >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform_f64(&self, counter: u32) -> f64 {
        let [a, b, ..] = self.block(counter);
        let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
        bits as f64 * (1.0 / 9_007_199_254_740_992.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, wanted) in cases {
            assert_eq!(philox4x32(counter, key), wanted);
        }
    }

    #[test]
    fn every_field_of_the_key_matters_and_the_mean_is_a_half() {
        let key = RngKey { seed: 1, stream: Stream::Sample, episode: 2, agent: 3 };
        let others = [
            RngKey { seed: 2, ..key },
            RngKey { stream: Stream::Faults, ..key },
            RngKey { episode: 2 | 1 << 40, ..key },
            RngKey { agent: 4, ..key },
        ];
        for other in others {
            assert_ne!(key.block(0), other.block(0));
        }
        let mean = (0..10_000).map(|i| key.uniform_f64(i)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((0..10_000).all(|i| (0.0..1.0).contains(&key.uniform_f32(i))));
    }
}
