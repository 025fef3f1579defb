//! Advantages: an episode's reward against its group's (method: K2.5 report, Eq. 1; no division by the spread).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a reward is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the group, the episode itself included.
    #[default]
    Mean,
    /// The mean of the others.
    LeaveOneOut,
}

/// Advantages of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupAdvantages {
    /// One for each reward, in order.
    pub advantages: Vec<f64>,
    /// All rewards are equal: the group teaches nothing.
    pub zero_variance: bool,
}

/// Reward less baseline, bonuses included in both. A group of one has no baseline of others; its advantage is 0.
pub fn group_advantages(rewards: &[f64], baseline: Baseline) -> GroupAdvantages {
    let n = rewards.len();
    let zero_variance = rewards.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits());
    if n < 2 || zero_variance {
        // Exactly 0, not the rounding of a mean.
        return GroupAdvantages { advantages: vec![0.0; n], zero_variance };
    }
    let sum: f64 = rewards.iter().sum();
    let advantages = match baseline {
        Baseline::Mean => rewards.iter().map(|r| r - sum / n as f64).collect(),
        Baseline::LeaveOneOut => rewards.iter().map(|r| r - (sum - r) / (n - 1) as f64).collect(),
    };
    GroupAdvantages { advantages, zero_variance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        let mean = group_advantages(&[1.0, 0.0, 0.0, 1.0], Baseline::Mean);
        assert_eq!(mean.advantages, [0.5, -0.5, -0.5, 0.5]);
        let others = group_advantages(&[1.0, 0.0, 0.0], Baseline::LeaveOneOut);
        assert_eq!(others.advantages, [1.0, -0.5, -0.5]);
        let equal = group_advantages(&[0.1; 7], Baseline::Mean);
        assert!(equal.zero_variance && equal.advantages.iter().all(|a| a.to_bits() == 0));
        assert_eq!(group_advantages(&[0.3], Baseline::LeaveOneOut).advantages, [0.0]);
    }

    proptest! {
        #[test]
        fn advantages_sum_to_zero_and_keep_the_order(rewards in prop::collection::vec(0.0..1.2f64, 2..16)) {
            for baseline in [Baseline::Mean, Baseline::LeaveOneOut] {
                let group = group_advantages(&rewards, baseline);
                prop_assert!(group.advantages.iter().sum::<f64>().abs() < 1e-9);
                for i in 0..rewards.len() {
                    for j in 0..rewards.len() {
                        if rewards[i] > rewards[j] + 1e-12 {
                            prop_assert!(group.advantages[i] > group.advantages[j]);
                        }
                    }
                }
            }
        }
    }
}
