//! The `rewards` section of a run's config, and the one call that scores an episode by it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Assignment;
use crate::advantage::{Baseline, Rule, Scale};
use crate::finish::r_finish;
use crate::metrics::Score;
use crate::parallel::r_parallel;
use crate::schedule::Schedule;
use crate::shaping::{Component, Lambdas, Parts, RewardForm, shape, total};
use crate::toggle::Toggle;

/// Widest bound on λ1 + λ2 (method §2, bound i): below 1, so that bonuses alone never reach a solved task's reward.
const LARGEST_SUM_LIMIT: f64 = 0.6;
/// Far above any stage's width; a larger cap would make r_parallel vanish.
const LARGEST_CAP: u32 = 1000;
/// Slack of comparisons of sums, so that 0.2 + 0.4 is not above 0.6.
const ROUNDING: f64 = 1e-9;

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
    /// What a reward is compared with; `null` takes what the objective names (docs/objectives.md).
    pub baseline: Option<Baseline>,
    /// What the difference is divided by; `null` takes what the objective names.
    pub scale: Option<Scale>,
    /// Bounds the orchestrator's tokens in every other stretch of steps (docs/objectives.md); `null` leaves it out.
    pub toggle: Option<Toggle>,
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
            baseline: None,
            scale: None,
            toggle: None,
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
    /// The weights at a training step (from 0). The blog form has no λ2.
    pub fn lambdas(&self, step: u64) -> Lambdas {
        let finish = match self.form {
            RewardForm::K25 => self.lambda_finish.at(step),
            RewardForm::Blog => 0.0,
        };
        Lambdas { parallel: self.lambda_parallel.at(step), finish }
    }

    /// How rewards become advantages; a choice that nobody made is K2.5's: the mean, and no scale.
    pub fn rule(&self) -> Rule {
        Rule { baseline: self.baseline.unwrap_or_default(), scale: self.scale.unwrap_or_default() }
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
        EpisodeScore { reward: total(&components), parts, lambdas, stage: self.stage_name(step), components }
    }

    /// Name of the stretch that `step` lies in; both schedules' names where they differ, as in `annealed/constant`.
    fn stage_name(&self, step: u64) -> String {
        let parallel = self.lambda_parallel.stage_name(step);
        let finish = self.lambda_finish.stage_name(step);
        if self.form == RewardForm::Blog || parallel == finish {
            parallel
        } else {
            format!("{parallel}/{finish}")
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
        let limit = self.lambda_sum_limit;
        if !(0.0..=LARGEST_SUM_LIMIT).contains(&limit) {
            let message = format!("{limit} is not between 0 and {LARGEST_SUM_LIMIT}");
            issues.push(("lambda_sum_limit".to_owned(), message));
        }
        if !(1..=LARGEST_CAP).contains(&self.n_cap) {
            issues.push(("n_cap".to_owned(), format!("{} is not between 1 and {LARGEST_CAP}", self.n_cap)));
        }
        if let Perf::Mix { success_weight } = self.perf
            && !(0.0..=1.0).contains(&success_weight)
        {
            let message = format!("{success_weight} is not between 0 and 1");
            issues.push(("perf.success_weight".to_owned(), message));
        }
        let toggle = self.toggle.iter().flat_map(Toggle::issues);
        issues.extend(toggle.map(|(key, m)| (format!("toggle.{key}"), m)));
        if issues.is_empty() {
            issues.extend(self.sum_issue().map(|message| ("lambda_parallel".to_owned(), message)));
        }
        issues
    }

    /// Whether bonuses could out-score a solved task. Peaks are summed, wherever in time they lie: simple, and
    /// never too lenient.
    fn sum_issue(&self) -> Option<String> {
        let (parallel, finish, limit) =
            (self.lambda_parallel.peak(), self.lambda_finish.peak(), self.lambda_sum_limit);
        match self.form {
            RewardForm::K25 if parallel + finish > limit + ROUNDING => Some(format!(
                "its largest value {parallel} and lambda_finish's {finish} add up to more than \
                 lambda_sum_limit ({limit})"
            )),
            RewardForm::Blog if parallel > limit + ROUNDING => {
                Some(format!("its largest value {parallel} is above lambda_sum_limit ({limit})"))
            }
            // λ·r_parallel of a failure against (1 − λ)·Q of a success that worked alone.
            RewardForm::Blog if parallel >= 0.5 => Some(format!(
                "its largest value {parallel} is not below 0.5: in the blog form a failure could out-score a \
                 success"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::StageValue;

    fn constant(value: f64) -> Schedule {
        Schedule::Constant { value }
    }

    #[test]
    fn faults_name_key_value_and_bound() {
        let base = RewardsConfig::default;
        let nan = f64::NAN;
        let spike = StageValue { until_step: 1502, value: 0.15 };
        let spike = vec![StageValue { until_step: 1501, value: 0.0 }, spike];
        let cases = [
            (base(), vec![]),
            (RewardsConfig { n_cap: 0, ..base() }, vec!["n_cap: 0 is not between 1 and 1000"]),
            (RewardsConfig { n_cap: 1001, ..base() }, vec!["n_cap: 1001 is not between 1 and 1000"]),
            (
                RewardsConfig { lambda_finish: constant(nan), lambda_sum_limit: 0.7, ..base() },
                vec![
                    "lambda_finish.value: NaN is not between 0 and 1",
                    "lambda_sum_limit: 0.7 is not between 0 and 0.6",
                ],
            ),
            (
                RewardsConfig { lambda_sum_limit: nan, ..base() },
                vec!["lambda_sum_limit: NaN is not between 0 and 0.6"],
            ),
            (
                RewardsConfig { perf: Perf::Mix { success_weight: 1.5 }, ..base() },
                vec!["perf.success_weight: 1.5 is not between 0 and 1"],
            ),
            (
                RewardsConfig { lambda_finish: constant(0.2), ..base() },
                vec![
                    "lambda_parallel: its largest value 0.1 and lambda_finish's 0.2 add up to more than \
                     lambda_sum_limit (0.2)",
                ],
            ),
            (RewardsConfig { lambda_finish: constant(0.2), lambda_sum_limit: 0.3, ..base() }, vec![]),
            // One step above the limit is enough, however long the schedule is.
            (
                RewardsConfig { lambda_finish: Schedule::Stages { stages: spike, then: 0.0 }, ..base() },
                vec![
                    "lambda_parallel: its largest value 0.1 and lambda_finish's 0.15 add up to more than \
                     lambda_sum_limit (0.2)",
                ],
            ),
            // 0.2 + 0.4 is a hair above 0.6 in binary.
            (
                RewardsConfig {
                    lambda_parallel: constant(0.2),
                    lambda_finish: constant(0.4),
                    lambda_sum_limit: 0.6,
                    ..base()
                },
                vec![],
            ),
            // λ2 has no part in the blog form.
            (RewardsConfig { form: RewardForm::Blog, lambda_finish: constant(0.9), ..base() }, vec![]),
            (
                RewardsConfig { form: RewardForm::Blog, lambda_parallel: constant(0.3), ..base() },
                vec!["lambda_parallel: its largest value 0.3 is above lambda_sum_limit (0.2)"],
            ),
            (
                RewardsConfig {
                    form: RewardForm::Blog,
                    lambda_parallel: constant(0.5),
                    lambda_sum_limit: 0.6,
                    ..base()
                },
                vec![
                    "lambda_parallel: its largest value 0.5 is not below 0.5: in the blog form a failure \
                     could out-score a success",
                ],
            ),
        ];
        for (config, wanted) in cases {
            let found: Vec<String> = config.issues().iter().map(|(k, m)| format!("{k}: {m}")).collect();
            assert_eq!(found, wanted, "{config:?}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_absent_ones_have_defaults() {
        let read = |text: &str| serde_json::from_str::<RewardsConfig>(text);
        assert_eq!(read("{}").unwrap(), RewardsConfig::default());
        let written = serde_json::to_string(&RewardsConfig::default()).unwrap();
        assert_eq!(read(&written).unwrap(), RewardsConfig::default());
        assert!(read(r#"{"perf": {"type": "mix", "success_weight": 0.7}}"#).is_ok());
        for bad in [
            r#"{"lambda": 0.1}"#,
            r#"{"form": "k26"}"#,
            r#"{"n_cap": -1}"#,
            r#"{"perf": {"type": "mix", "success_weight": 0.7, "x": 1}}"#,
            r#"{"lambda_parallel": {"type": "constant", "value": 0.1, "x": 1}}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn perf_is_chosen_and_the_stage_named() {
        let half = Score { value: 0.5, success: false };
        let cases = [
            (Perf::Metric, half, 0.5),
            (Perf::Success, half, 0.0),
            (Perf::Mix { success_weight: 0.7 }, half, 0.15),
            (Perf::Mix { success_weight: 0.7 }, Score { value: 1.0, success: true }, 1.0),
        ];
        for (perf, score, wanted) in cases {
            let config = RewardsConfig { perf, ..RewardsConfig::default() };
            assert!((config.score(0, score, &[]).reward - wanted).abs() < 1e-12, "{perf:?}");
        }
        let stage = |config: &RewardsConfig, step| config.score(step, half, &[]).stage;
        let mut config = RewardsConfig::default();
        assert_eq!((stage(&config, 99), stage(&config, 100)), ("annealing".into(), "annealed".into()));
        config.lambda_finish = constant(0.1);
        assert_eq!(stage(&config, 100), "annealed/constant");
        config.form = RewardForm::Blog;
        assert_eq!(stage(&config, 100), "annealed");
        assert_eq!(config.lambdas(0), Lambdas { parallel: 0.1, finish: 0.0 });
    }
}
