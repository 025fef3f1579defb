//! Advantages: an episode's reward against its group's. What it is compared with and whether the difference is divided
//! by the group's spread are two choices; each published objective names a pair (docs/objectives.md).

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

/// What the difference is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Nothing.
    #[default]
    None,
    /// The standard deviation of the group's rewards (n − 1 below the fraction), plus 1e-6.
    Std,
}

/// Added to the deviation, so that rewards which differ by rounding alone are not blown up. GRPO's paper leaves open
/// both this and whether n or n − 1 is meant; this is the widespread choice.
const STD_EPSILON: f64 = 1e-6;

/// How rewards become advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// What a reward is compared with.
    pub baseline: Baseline,
    /// What the difference is divided by.
    pub scale: Scale,
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

/// Reward less baseline, bonuses included in both, over the scale. A group of one has no others to compare with; its
/// advantage is 0.
pub fn group_advantages(rewards: &[f64], rule: Rule) -> GroupAdvantages {
    let n = rewards.len();
    let zero_variance = rewards.windows(2).all(|pair| pair[0].to_bits() == pair[1].to_bits());
    if n < 2 || zero_variance {
        // Exactly 0, not the rounding of a mean.
        return GroupAdvantages { advantages: vec![0.0; n], baselines: rewards.to_vec(), zero_variance };
    }
    let sum: f64 = rewards.iter().sum();
    let mean = sum / n as f64;
    let baselines: Vec<f64> = match rule.baseline {
        Baseline::Mean => vec![mean; n],
        Baseline::LeaveOneOut => rewards.iter().map(|r| (sum - r) / (n - 1) as f64).collect(),
    };
    let scale = match rule.scale {
        Scale::None => 1.0,
        Scale::Std => {
            let squares: f64 = rewards.iter().map(|r| (r - mean).powi(2)).sum();
            (squares / (n - 1) as f64).sqrt() + STD_EPSILON
        }
    };
    let advantages = rewards.iter().zip(&baselines).map(|(r, b)| (r - b) / scale).collect();
    GroupAdvantages { advantages, baselines, zero_variance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEAN: Rule = Rule { baseline: Baseline::Mean, scale: Scale::None };
    const OTHERS: Rule = Rule { baseline: Baseline::LeaveOneOut, scale: Scale::None };

    /// Every pair of choices.
    fn rules() -> [Rule; 4] {
        let scaled = |rule: Rule| Rule { scale: Scale::Std, ..rule };
        [MEAN, OTHERS, scaled(MEAN), scaled(OTHERS)]
    }

    #[test]
    fn examples() {
        let mean = group_advantages(&[1.0, 0.0, 0.0, 1.0], MEAN);
        assert_eq!(mean.advantages, [0.5, -0.5, -0.5, 0.5]);
        let others = group_advantages(&[1.0, 0.0, 0.0], OTHERS);
        assert_eq!(others.advantages, [1.0, -0.5, -0.5]);
        assert_eq!(others.baselines, [0.0, 0.5, 0.5]);
        assert!(!mean.zero_variance && !others.zero_variance);
        // 1, 2, 3: the mean is 2, the deviation 1.
        let scaled = group_advantages(&[1.0, 2.0, 3.0], Rule { scale: Scale::Std, ..MEAN });
        assert_eq!(scaled.advantages, [-1.0 / 1.000_001, 0.0, 1.0 / 1.000_001]);
        assert_eq!(scaled.baselines, [2.0; 3]);
        for rule in rules() {
            let equal = group_advantages(&[0.1; 7], rule);
            assert!(equal.zero_variance && equal.advantages.iter().all(|a| a.to_bits() == 0));
            assert_eq!(group_advantages(&[0.3], rule).advantages, [0.0]);
            assert!(group_advantages(&[], rule).advantages.is_empty());
        }
        // A difference that is rounding stays next to nothing.
        let hair = group_advantages(&[0.1 + 0.2, 0.3], Rule { scale: Scale::Std, ..MEAN });
        assert!(hair.advantages.iter().all(|a| a.abs() < 1e-9), "{hair:?}");
    }

    proptest! {
        /// Leave-one-out stretches the mean's advantages by n / (n − 1) and changes nothing else.
        #[test]
        fn leave_one_out_is_the_mean_stretched(rewards in prop::collection::vec(0.0..1.2f64, 2..16)) {
            let n = rewards.len() as f64;
            let mean = group_advantages(&rewards, MEAN).advantages;
            let others = group_advantages(&rewards, OTHERS).advantages;
            for (m, o) in mean.iter().zip(&others) {
                prop_assert!((m * n / (n - 1.0) - o).abs() < 1e-9);
            }
        }

        #[test]
        fn equal_rewards_teach_exactly_nothing(reward in 0.0..1.2f64, n in 1usize..16) {
            for rule in rules() {
                let group = group_advantages(&vec![reward; n], rule);
                prop_assert!(group.zero_variance && group.advantages.iter().all(|a| a.to_bits() == 0));
            }
        }

        /// Over their deviation, advantages are the same whatever the rewards' unit and zero.
        #[test]
        fn scaled_advantages_have_no_unit(
            rewards in prop::collection::vec(0.0..1.2f64, 2..16), unit in 0.5..4.0f64, zero in -2.0..2.0f64
        ) {
            let rule = Rule { scale: Scale::Std, ..MEAN };
            let plain = group_advantages(&rewards, rule).advantages;
            let other: Vec<f64> = rewards.iter().map(|r| r * unit + zero).collect();
            let spread = rewards.iter().fold(f64::MIN, |a, b| a.max(*b)) - rewards.iter().fold(f64::MAX, |a, b| a.min(*b));
            prop_assume!(spread > 0.01);
            for (a, b) in plain.iter().zip(&group_advantages(&other, rule).advantages) {
                prop_assert!((a - b).abs() < 2e-3, "{a} {b}");
            }
            let squares: f64 = plain.iter().map(|a| a * a).sum::<f64>() / (rewards.len() - 1) as f64;
            prop_assert!((squares - 1.0).abs() < 1e-3, "{squares}");
        }

        #[test]
        fn advantages_sum_to_zero_and_keep_the_order(rewards in prop::collection::vec(0.0..1.2f64, 2..16)) {
            for rule in rules() {
                let group = group_advantages(&rewards, rule);
                prop_assert!(group.advantages.iter().sum::<f64>().abs() < 1e-9);
                for ((r, a), b) in rewards.iter().zip(&group.advantages).zip(&group.baselines) {
                    prop_assert!(rule.scale == Scale::Std || (r - a - b).abs() < 1e-12);
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
