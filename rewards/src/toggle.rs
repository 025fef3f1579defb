//! Toggle: in every other stretch of training steps, a group that does well enough earns only within a budget of tokens
//! (K2.5 report): r̃ = r · I[the group's mean r < λ or |y| ≤ budget(x)] in one phase, r̃ = r in the other.
//!
//! The budget of a class of tasks is a percentile of the lengths of right answers, estimated once, over the first steps.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shaping::Component;

/// The component that takes a reward away.
pub const COMPONENT: &str = "r_budget";

/// Slack of a mean against its limit, so that a sum's rounding decides nothing.
const ROUNDING: f64 = 1e-9;

/// Toggle's settings. The report leaves them open; the defaults are a choice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Toggle {
    /// Steps of a phase: so many with the budget, so many without, and again.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub phase_steps: u64,
    /// The budget binds groups whose mean reward is at least this.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub mean_limit: f64,
    /// The budget is the length that this share of right answers do not exceed. Above 0, to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub percentile: f64,
    /// First steps of the run, whose right answers are measured and which no budget binds.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub estimate_steps: u64,
}

impl Default for Toggle {
    fn default() -> Self {
        Self { phase_steps: 10, mean_limit: 0.8, percentile: 0.9, estimate_steps: 10 }
    }
}

impl Toggle {
    /// Whether right answers of this step (from 0) are measured.
    pub fn estimates(&self, step: u64) -> bool {
        step < self.estimate_steps
    }

    /// Whether the budget binds at this step.
    pub fn binds(&self, step: u64) -> bool {
        !self.estimates(step) && (step / self.phase_steps.max(1)).is_multiple_of(2)
    }

    /// Whether it binds a group with these rewards.
    pub fn binds_group(&self, rewards: &[f64]) -> bool {
        let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
        mean >= self.mean_limit - ROUNDING
    }

    /// What is out of bounds: `(key, message)`.
    pub fn issues(&self) -> Vec<(String, String)> {
        let mut issues = Vec::new();
        if !(self.percentile > 0.0 && self.percentile <= 1.0) {
            issues
                .push(("percentile".to_owned(), format!("{} is not above 0 and at most 1", self.percentile)));
        }
        if !(0.0..=2.0).contains(&self.mean_limit) {
            issues.push(("mean_limit".to_owned(), format!("{} is not between 0 and 2", self.mean_limit)));
        }
        for (key, value) in [("phase_steps", self.phase_steps), ("estimate_steps", self.estimate_steps)] {
            if value == 0 {
                issues.push((key.to_owned(), "0 is below 1".to_owned()));
            }
        }
        issues
    }
}

/// The term of a reward that is `reward` without it: all of it is taken away, or nothing.
pub fn component(reward: f64, taken: bool) -> Component {
    let weight = if taken { -1.0 } else { 0.0 };
    Component { component: COMPONENT, raw: reward, weight, value: reward * weight, source: "toggle" }
}

/// Lengths of right answers by class of task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budgets<Class> {
    lengths: BTreeMap<Class, Vec<u64>>,
}

impl<Class: Ord> Default for Budgets<Class> {
    fn default() -> Self {
        Self { lengths: BTreeMap::new() }
    }
}

impl<Class: Ord> Budgets<Class> {
    /// Takes the length of a right answer in.
    pub fn measure(&mut self, class: Class, tokens: u64) {
        let lengths = self.lengths.entry(class).or_default();
        let at = lengths.partition_point(|l| *l < tokens);
        lengths.insert(at, tokens);
    }

    /// The smallest length that a share `percentile` of the right answers do not exceed; `None` for a class without one.
    pub fn budget(&self, class: &Class, percentile: f64) -> Option<u64> {
        let lengths = self.lengths.get(class)?;
        let rank = (percentile * lengths.len() as f64).ceil() as usize;
        lengths.get(rank.saturating_sub(1).min(lengths.len() - 1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn phases_take_turns_once_the_budget_is_known() {
        let toggle = Toggle { phase_steps: 2, estimate_steps: 5, ..Toggle::default() };
        let bound: Vec<u64> = (0..14).filter(|step| toggle.binds(*step)).collect();
        assert_eq!(bound, [5, 8, 9, 12, 13]);
        assert!((0..5).all(|step| toggle.estimates(step)) && !toggle.estimates(5));
    }

    #[test]
    fn a_group_is_bound_from_the_limit_on() {
        let toggle = Toggle { mean_limit: 0.8, ..Toggle::default() };
        assert!(toggle.binds_group(&[0.8; 7]) && toggle.binds_group(&[1.0, 0.6]));
        assert!(!toggle.binds_group(&[0.79; 7]) && !toggle.binds_group(&[]));
    }

    #[test]
    fn budgets_are_nearest_ranks_by_class() {
        let mut budgets = Budgets::default();
        for tokens in [30, 10, 20, 40] {
            budgets.measure(("wide", 4), tokens);
        }
        budgets.measure(("deep", 2), 7);
        let of = |percentile| budgets.budget(&("wide", 4), percentile);
        assert_eq!([of(0.25), of(0.5), of(0.51), of(1.0)], [Some(10), Some(20), Some(30), Some(40)]);
        assert_eq!(of(1e-9), Some(10));
        assert_eq!((budgets.budget(&("deep", 2), 0.9), budgets.budget(&("deep", 3), 0.9)), (Some(7), None));
    }

    #[test]
    fn faults_name_key_value_and_bound() {
        let wrong = Toggle { phase_steps: 0, mean_limit: -0.5, percentile: f64::NAN, estimate_steps: 0 };
        let found: Vec<String> = wrong.issues().iter().map(|(k, m)| format!("{k}: {m}")).collect();
        let wanted = [
            "percentile: NaN is not above 0 and at most 1",
            "mean_limit: -0.5 is not between 0 and 2",
            "phase_steps: 0 is below 1",
            "estimate_steps: 0 is below 1",
        ];
        assert_eq!(found, wanted);
        assert_eq!(Toggle::default().issues(), []);
    }

    proptest! {
        #[test]
        fn what_is_taken_leaves_exactly_nothing(reward in 0.0..1.2f64) {
            prop_assert_eq!((reward + component(reward, true).value).to_bits(), 0);
            prop_assert_eq!((reward + component(reward, false).value).to_bits(), reward.to_bits());
        }

        /// A share of the lengths that is at least the percentile keeps the budget, and no smaller length would do.
        #[test]
        fn budgets_keep_their_promise(lengths in prop::collection::vec(0u64..50, 1..40), percentile in 0.01..1.0f64) {
            let mut budgets = Budgets::default();
            for length in &lengths {
                budgets.measure((), *length);
            }
            let budget = budgets.budget(&(), percentile).unwrap();
            let within = |b: u64| lengths.iter().filter(|l| **l <= b).count() as f64 / lengths.len() as f64;
            prop_assert!(lengths.contains(&budget) && within(budget) >= percentile - 1e-9);
            prop_assert!(budget == 0 || within(budget - 1) < percentile + 1e-9);
        }
    }
}
