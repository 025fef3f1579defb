//! Schedules: a weight as a function of the training step. Each names its own length, so that a longer run moves
//! no weight.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A stretch of a [`Schedule::Stages`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageValue {
    /// The first step after this stage.
    pub until_step: u64,
    /// The weight during it.
    pub value: f64,
}

/// A weight over steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The same at every step.
    Constant {
        /// The weight.
        value: f64,
    },
    /// In a straight line from `from` at step 0 to `to` at step `steps`, then `to`.
    Linear {
        /// At step 0.
        from: f64,
        /// At step `steps` and ever after.
        to: f64,
        /// Length in training steps.
        steps: u64,
    },
    /// Along half a cosine wave.
    Cosine {
        /// At step 0.
        from: f64,
        /// At step `steps` and ever after.
        to: f64,
        /// Length in training steps.
        steps: u64,
    },
    /// By a constant factor a step: the part above `to` falls to a thousandth of itself, then to nothing.
    Exponential {
        /// At step 0.
        from: f64,
        /// At step `steps` and ever after.
        to: f64,
        /// Length in training steps.
        steps: u64,
    },
    /// Piecewise constant.
    Stages {
        /// In order of `until_step`.
        stages: Vec<StageValue>,
        /// After the last stage.
        then: f64,
    },
}

/// What is left of an exponential schedule's way just before its end.
const EXPONENTIAL_REST: f64 = 1e-3;

impl Schedule {
    /// The weight at `step` (from 0). Exactly `to` once the schedule is over.
    pub fn at(&self, step: u64) -> f64 {
        match self {
            Self::Constant { value } => *value,
            Self::Linear { from, to, steps } => along(*from, *to, *steps, step, |x| 1.0 - x),
            Self::Cosine { from, to, steps } => {
                along(*from, *to, *steps, step, |x| 0.5 * (1.0 + (std::f64::consts::PI * x).cos()))
            }
            Self::Exponential { from, to, steps } => {
                along(*from, *to, *steps, step, |x| EXPONENTIAL_REST.powf(x))
            }
            Self::Stages { stages, then } => {
                stages.iter().find(|s| step < s.until_step).map_or(*then, |s| s.value)
            }
        }
    }

    /// Name of the stretch that `step` lies in, for the log.
    pub fn stage_name(&self, step: u64) -> String {
        match self {
            Self::Constant { .. } => "constant".to_owned(),
            Self::Linear { steps, .. } | Self::Cosine { steps, .. } | Self::Exponential { steps, .. } => {
                if step < *steps { "annealing" } else { "annealed" }.to_owned()
            }
            Self::Stages { stages, .. } => {
                let index = stages.iter().position(|s| step < s.until_step).unwrap_or(stages.len());
                format!("stage_{index}")
            }
        }
    }

    /// Steps after which the weight no longer changes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Constant { .. } => 0,
            Self::Linear { steps, .. } | Self::Cosine { steps, .. } | Self::Exponential { steps, .. } => {
                *steps
            }
            Self::Stages { stages, .. } => stages.last().map_or(0, |s| s.until_step),
        }
    }

    /// Every weight that the schedule can give, one a step up to its end.
    pub fn values(&self) -> impl Iterator<Item = f64> + '_ {
        (0..=self.length()).map(|step| self.at(step))
    }

    /// What is wrong with it: `(key, message)`, keys relative to the schedule.
    pub fn issues(&self) -> Vec<(String, String)> {
        let mut issues = Vec::new();
        let mut check = |key: String, value: f64| {
            if !(0.0..=1.0).contains(&value) {
                issues.push((key, format!("{value} is not between 0 and 1")));
            }
        };
        match self {
            Self::Constant { value } => check("value".into(), *value),
            Self::Linear { from, to, .. }
            | Self::Cosine { from, to, .. }
            | Self::Exponential { from, to, .. } => {
                check("from".into(), *from);
                check("to".into(), *to);
            }
            Self::Stages { stages, then } => {
                check("then".into(), *then);
                for (i, stage) in stages.iter().enumerate() {
                    check(format!("stages[{i}].value"), stage.value);
                }
                for (i, pair) in stages.windows(2).enumerate() {
                    if pair[1].until_step <= pair[0].until_step {
                        issues.push((
                            format!("stages[{}].until_step", i + 1),
                            format!(
                                "{} is not above the stage before it ({})",
                                pair[1].until_step, pair[0].until_step
                            ),
                        ));
                    }
                }
            }
        }
        issues
    }
}

fn along(from: f64, to: f64, steps: u64, step: u64, rest: impl Fn(f64) -> f64) -> f64 {
    if step >= steps {
        return to;
    }
    to + (from - to) * rest(step as f64 / steps as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_exact_and_the_way_is_monotonic() {
        let (from, to, steps) = (0.1, 0.0, 50);
        for schedule in [
            Schedule::Linear { from, to, steps },
            Schedule::Cosine { from, to, steps },
            Schedule::Exponential { from, to, steps },
        ] {
            assert!((schedule.at(0) - 0.1).abs() < 1e-12, "{schedule:?}");
            for step in [50, 51, 1_000_000] {
                assert_eq!(schedule.at(step).to_bits(), 0, "{schedule:?} at {step}");
            }
            let values: Vec<f64> = schedule.values().collect();
            assert!(values.windows(2).all(|w| w[1] < w[0]), "{schedule:?}");
            assert_eq!(values.len(), 51);
            assert_eq!(
                (schedule.stage_name(49), schedule.stage_name(50)),
                ("annealing".into(), "annealed".into())
            );
        }
        assert!((Schedule::Linear { from, to, steps }.at(25) - 0.05).abs() < 1e-12);
        assert!((Schedule::Cosine { from, to, steps }.at(25) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn stages_hold_until_their_step() {
        let stages = vec![StageValue { until_step: 2, value: 0.3 }, StageValue { until_step: 5, value: 0.1 }];
        let schedule = Schedule::Stages { stages, then: 0.0 };
        let values: Vec<f64> = (0..7).map(|s| schedule.at(s)).collect();
        assert_eq!(values, [0.3, 0.3, 0.1, 0.1, 0.1, 0.0, 0.0]);
        assert_eq!(schedule.stage_name(6), "stage_2");
        assert!(schedule.issues().is_empty());
        let bad = Schedule::Stages {
            stages: vec![StageValue { until_step: 5, value: 0.3 }, StageValue { until_step: 5, value: 1.5 }],
            then: f64::NAN,
        };
        assert_eq!(bad.issues().len(), 3);
    }
}
