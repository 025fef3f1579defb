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
    /// What each reward was compared with, in order.
    pub baselines: Vec<f64>,
    /// All rewards are equal: the group teaches nothing.
    pub zero_variance: bool,
}

/// Reward less baseline, bonuses included in both. A group of one has no others to compare with; its advantage
/// is 0.
pub fn group_advantages(rewards: &[f64], baseline: Baseline) -> GroupAdvantages {
    let n = rewards.len();
    let zero_variance = rewards.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits());
    if n < 2 || zero_variance {
        // Exactly 0, not the rounding of a mean.
        return GroupAdvantages { advantages: vec![0.0; n], baselines: rewards.to_vec(), zero_variance };
    }
    let sum: f64 = rewards.iter().sum();
    let baselines: Vec<f64> = match baseline {
        Baseline::Mean => vec![sum / n as f64; n],
        Baseline::LeaveOneOut => rewards.iter().map(|r| (sum - r) / (n - 1) as f64).collect(),
    };
    let advantages = rewards.iter().zip(&baselines).map(|(r, b)| r - b).collect();
    GroupAdvantages { advantages, baselines, zero_variance }
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
        assert_eq!(others.baselines, [0.0, 0.5, 0.5]);
        assert!(!mean.zero_variance && !others.zero_variance);
        let equal = group_advantages(&[0.1; 7], Baseline::Mean);
        assert!(equal.zero_variance && equal.advantages.iter().all(|a| a.to_bits() == 0));
        assert_eq!(group_advantages(&[0.3], Baseline::LeaveOneOut).advantages, [0.0]);
        assert!(group_advantages(&[], Baseline::Mean).advantages.is_empty());
    }

    proptest! {
        /// Leave-one-out stretches the mean's advantages by n / (n − 1) and changes nothing else.
        #[test]
        fn leave_one_out_is_the_mean_stretched(rewards in prop::collection::vec(0.0..1.2f64, 2..16)) {
            let n = rewards.len() as f64;
            let mean = group_advantages(&rewards, Baseline::Mean).advantages;
            let others = group_advantages(&rewards, Baseline::LeaveOneOut).advantages;
            for (m, o) in mean.iter().zip(&others) {
                prop_assert!((m * n / (n - 1.0) - o).abs() < 1e-9);
            }
        }

        #[test]
        fn equal_rewards_teach_exactly_nothing(reward in 0.0..1.2f64, n in 1usize..16) {
            for baseline in [Baseline::Mean, Baseline::LeaveOneOut] {
                let group = group_advantages(&vec![reward; n], baseline);
                prop_assert!(group.zero_variance && group.advantages.iter().all(|a| a.to_bits() == 0));
            }
        }

        #[test]
        fn advantages_sum_to_zero_and_keep_the_order(rewards in prop::collection::vec(0.0..1.2f64, 2..16)) {
            for baseline in [Baseline::Mean, Baseline::LeaveOneOut] {
                let group = group_advantages(&rewards, baseline);
                prop_assert!(group.advantages.iter().sum::<f64>().abs() < 1e-9);
                for ((r, a), b) in rewards.iter().zip(&group.advantages).zip(&group.baselines) {
                    prop_assert!((r - a - b).abs() < 1e-12);
                }
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
