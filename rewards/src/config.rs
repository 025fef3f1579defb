//! The `rewards` section of a run's config, and the one call that scores an episode by it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Assignment;
use crate::advantage::Baseline;
use crate::finish::r_finish;
use crate::metrics::Score;
use crate::parallel::r_parallel;
use crate::schedule::Schedule;
use crate::shaping::{Component, Lambdas, Parts, RewardForm, shape, total};

/// How a task's score becomes r_perf.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Perf {
    /// The task metric's value, as it is.
    #[default]
    Metric,
    /// 1 when every item is right, else 0.
    Success,
    /// `success_weight`·success + (1 − `success_weight`)·metric.
    Mix {
        /// From 0 to 1.
        success_weight: f64,
    },
}

/// Rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardsConfig {
    /// Which formula: the report's (`k25`) or the launch blog's (`blog`).
    pub form: RewardForm,
    /// λ1, the weight of r_parallel over training steps.
    pub lambda_parallel: Schedule,
    /// λ2, the weight of r_finish over training steps.
    pub lambda_finish: Schedule,
    /// Largest λ1 + λ2 that is accepted; 0.6 at most, so that bonuses never out-score a solved task.
    #[schemars(range(min = 0.0, max = 0.6))]
    pub lambda_sum_limit: f64,
    /// Different prompts in one stage that earn all of r_parallel.
    #[schemars(range(min = 1, max = 1000))]
    pub n_cap: u32,
    /// How a task's score becomes r_perf.
    pub perf: Perf,
    /// What a reward is compared with.
    pub baseline: Baseline,
}

impl Default for RewardsConfig {
    fn default() -> Self {
        let anneal = Schedule::Linear { from: 0.1, to: 0.0, steps: 100 };
        Self {
            form: RewardForm::K25,
            lambda_parallel: anneal.clone(),
            lambda_finish: anneal,
            lambda_sum_limit: 0.2,
            n_cap: 4,
            perf: Perf::Metric,
            baseline: Baseline::Mean,
        }
    }
}

/// A scored episode.
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodeScore {
    /// Sum of the components' values.
    pub reward: f64,
    /// Before weights.
    pub parts: Parts,
    /// The weights used.
    pub lambdas: Lambdas,
    /// Name of the schedule's stretch.
    pub stage: String,
    /// The terms.
    pub components: [Component; 3],
}

impl RewardsConfig {
    /// The weights at a training step (from 0).
    pub fn lambdas(&self, step: u64) -> Lambdas {
        Lambdas { parallel: self.lambda_parallel.at(step), finish: self.lambda_finish.at(step) }
    }

    /// Scores an episode at a training step.
    pub fn score(&self, step: u64, score: Score, assignments: &[Assignment<'_>]) -> EpisodeScore {
        let success = f64::from(u8::from(score.success));
        let perf = match self.perf {
            Perf::Metric => score.value,
            Perf::Success => success,
            Perf::Mix { success_weight } => success_weight * success + (1.0 - success_weight) * score.value,
        };
        let parts = Parts {
            perf,
            parallel: r_parallel(assignments, self.n_cap),
            finish: r_finish(assignments),
            success: score.success,
        };
        let lambdas = self.lambdas(step);
        let components = shape(self.form, parts, lambdas);
        EpisodeScore {
            reward: total(&components),
            parts,
            lambdas,
            stage: self.lambda_parallel.stage_name(step),
            components,
        }
    }

    /// What is out of bounds: `(key, message)`, keys relative to the section.
    pub fn issues(&self) -> Vec<(String, String)> {
        let mut issues = Vec::new();
        for (name, schedule) in
            [("lambda_parallel", &self.lambda_parallel), ("lambda_finish", &self.lambda_finish)]
        {
            issues.extend(schedule.issues().into_iter().map(|(key, m)| (format!("{name}.{key}"), m)));
        }
        if !(0.0..=0.6).contains(&self.lambda_sum_limit) {
            issues.push((
                "lambda_sum_limit".into(),
                format!("{} is not between 0 and 0.6", self.lambda_sum_limit),
            ));
        }
        if self.n_cap == 0 {
            issues.push(("n_cap".into(), "0 is below 1".into()));
        }
        if let Perf::Mix { success_weight } = self.perf
            && !(0.0..=1.0).contains(&success_weight)
        {
            issues.push(("perf.success_weight".into(), format!("{success_weight} is not between 0 and 1")));
        }
        if issues.is_empty() {
            let last = self.lambda_parallel.length().max(self.lambda_finish.length());
            // Long schedules are smooth: a thousand points find their largest sum, and the start is among them.
            let stride = (last / 1000).max(1) as usize;
            let sum = |step: u64| self.lambda_parallel.at(step) + self.lambda_finish.at(step);
            let worst = (0..=last)
                .step_by(stride)
                .chain([last])
                .map(|s| (s, sum(s)))
                .fold((0, 0.0), |a, b| if b.1 > a.1 { b } else { a });
            if worst.1 > self.lambda_sum_limit + 1e-12 {
                issues.push((
                    "lambda_parallel".into(),
                    format!(
                        "lambda_parallel + lambda_finish is {} at step {}, above lambda_sum_limit ({})",
                        worst.1, worst.0, self.lambda_sum_limit
                    ),
                ));
            }
        }
        issues
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::StageValue;
    use proptest::prelude::*;

    /// The shipped default and other schedules up to the widest limit.
    fn configs() -> Vec<RewardsConfig> {
        let with = |a: Schedule, b: Schedule, limit| RewardsConfig {
            lambda_parallel: a,
            lambda_finish: b,
            lambda_sum_limit: limit,
            ..RewardsConfig::default()
        };
        let (from, to, steps) = (0.3, 0.0, 40);
        let stages = Schedule::Stages {
            stages: vec![
                StageValue { until_step: 10, value: 0.3 },
                StageValue { until_step: 20, value: 0.1 },
            ],
            then: 0.0,
        };
        vec![
            RewardsConfig::default(),
            with(Schedule::Cosine { from, to, steps }, Schedule::Linear { from, to, steps }, 0.6),
            with(Schedule::Exponential { from, to, steps }, Schedule::Constant { value: 0.3 }, 0.6),
            with(stages.clone(), stages, 0.6),
        ]
    }

    fn score(value: f64) -> Score {
        Score { value, success: value >= 1.0 }
    }

    #[test]
    fn sums_over_the_limit_are_refused_by_name() {
        let mut config = RewardsConfig::default();
        assert!(config.issues().is_empty());
        config.lambda_finish = Schedule::Constant { value: 0.2 };
        let issues = config.issues();
        assert_eq!(issues.len(), 1);
        assert!(issues[0].1.contains("lambda_sum_limit (0.2)"), "{issues:?}");
        config.lambda_sum_limit = 0.7;
        assert!(config.issues()[0].1.contains("between 0 and 0.6"));
    }

    #[test]
    fn spam_earns_nothing_against_a_balanced_expert() {
        let prompts: Vec<String> = (0..100).map(|i| format!("spam {i}")).collect();
        let spam: Vec<Assignment<'_>> = prompts
            .iter()
            .map(|p| Assignment { stage: 0, prompt: p, finished: true, env_calls: 0 })
            .collect();
        let expert: Vec<Assignment<'_>> = (0..4)
            .map(|i| Assignment { stage: 0, prompt: &prompts[i], finished: true, env_calls: 2 })
            .collect();
        for config in configs() {
            for step in 0..=60 {
                let (spammer, solver) =
                    (config.score(step, score(0.0), &spam), config.score(step, score(1.0), &expert));
                assert!(solver.reward > spammer.reward);
                assert!(
                    solver.parts.parallel >= spammer.parts.parallel && spammer.parts.finish.abs() < 1e-15
                );
            }
        }
    }

    proptest! {
        /// method.md §2, bounds (i) and (ii), at every λ of every schedule.
        #[test]
        fn bonuses_never_outweigh_the_task(
            perf in 0.0..1.0f64, wrong_agents in 0usize..12, right_agents in 0usize..12,
            wrong_calls in 0u32..3, right_calls in 0u32..3,
        ) {
            let prompts: Vec<String> = (0..12).map(|i| format!("p{i}")).collect();
            let make = |n: usize, env_calls| -> Vec<Assignment<'_>> {
                prompts[..n].iter().map(|p| Assignment { stage: 0, prompt: p, finished: env_calls > 1, env_calls }).collect()
            };
            for config in configs() {
                for step in 0..=60 {
                    let wrong = config.score(step, score(0.0), &make(wrong_agents, wrong_calls));
                    let solved = config.score(step, score(1.0), &make(right_agents, right_calls));
                    prop_assert!(wrong.reward < solved.reward);
                    let a = config.score(step, score(perf), &make(wrong_agents, wrong_calls));
                    let b = config.score(step, score(perf), &make(right_agents, right_calls));
                    let lambdas = config.lambdas(step);
                    prop_assert!((a.reward - b.reward).abs() <= lambdas.parallel + lambdas.finish + 1e-12);
                    if lambdas.parallel == 0.0 && lambdas.finish == 0.0 {
                        prop_assert_eq!(a.reward.to_bits(), b.reward.to_bits());
                    }
                    prop_assert!((a.reward - a.components.iter().map(|c| c.value).sum::<f64>()).abs() < 1e-15);
                }
            }
        }
    }
}
