//! How the tokens' losses become one number: each token's share of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::learner::Sample;

/// What a token's loss is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Aggregation {
    /// The tokens of its group, then groups count alike (K2.5, arXiv 2602.02276).
    GroupTokens,
    /// The tokens of the update (DAPO, arXiv 2503.14476): long episodes weigh more.
    BatchTokens,
    /// The tokens of its episode, then episodes count alike (GRPO, arXiv 2402.03300): a long episode's tokens weigh less.
    SequenceMean,
    /// A fixed length, then episodes count alike (Dr. GRPO, arXiv 2503.20783): every token weighs the same at every step.
    Constant {
        /// Tokens.
        #[schemars(range(min = 1, max = 1_000_000_000))]
        length: u32,
    },
}

impl Aggregation {
    /// The share of each token of each sample; 0 for samples that are left out. Samples without a trained token count
    /// as no episode. With `skip_flat_groups`, a group whose advantages are all 0 is in no divisor.
    pub(super) fn shares(self, samples: &[Sample], skip_flat_groups: bool) -> Vec<f64> {
        let lengths: Vec<usize> = samples.iter().map(Sample::trained).collect();
        let mut taught: BTreeMap<usize, bool> = BTreeMap::new();
        for sample in samples {
            *taught.entry(sample.group).or_default() |= sample.advantage != 0.0;
        }
        let counts = |i: usize| lengths[i] > 0 && (taught[&samples[i].group] || !skip_flat_groups);
        let counted: Vec<usize> = (0..samples.len()).filter(|i| counts(*i)).collect();
        let mut tokens: BTreeMap<usize, usize> = BTreeMap::new();
        for i in &counted {
            *tokens.entry(samples[*i].group).or_default() += lengths[*i];
        }
        let all: usize = tokens.values().sum();
        let divisor = |i: usize| match self {
            Self::GroupTokens => tokens[&samples[i].group] * tokens.len(),
            Self::BatchTokens => all,
            Self::SequenceMean => lengths[i] * counted.len(),
            Self::Constant { length } => length as usize * counted.len(),
        };
        let mut shares = vec![0.0; samples.len()];
        for i in counted.iter().copied() {
            shares[i] = 1.0 / divisor(i) as f64;
        }
        shares
    }
}
