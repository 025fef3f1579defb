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

    /// The weights that it is made of, each under its key; all others lie between them.
    fn corners(&self) -> Vec<(String, f64)> {
        match self {
            Self::Constant { value } => vec![("value".to_owned(), *value)],
            Self::Linear { from, to, .. }
            | Self::Cosine { from, to, .. }
            | Self::Exponential { from, to, .. } => vec![("from".to_owned(), *from), ("to".to_owned(), *to)],
            Self::Stages { stages, then } => {
                let stage_values =
                    stages.iter().enumerate().map(|(i, s)| (format!("stages[{i}].value"), s.value));
                stage_values.chain([("then".to_owned(), *then)]).collect()
            }
        }
    }

    /// The largest weight that it can give.
    pub fn peak(&self) -> f64 {
        self.corners().into_iter().map(|(_, value)| value).fold(0.0, f64::max)
    }

    /// What is wrong with it: `(key, message)`, keys relative to the schedule.
    pub fn issues(&self) -> Vec<(String, String)> {
        let mut issues: Vec<(String, String)> = self
            .corners()
            .into_iter()
            .filter(|(_, value)| !(0.0..=1.0).contains(value))
            .map(|(key, value)| (key, format!("{value} is not between 0 and 1")))
            .collect();
        match self {
            Self::Constant { .. } => {}
            Self::Linear { steps, .. } | Self::Cosine { steps, .. } | Self::Exponential { steps, .. } => {
                if *steps == 0 {
                    issues.push(("steps".to_owned(), "0 is below 1".to_owned()));
                }
            }
            Self::Stages { stages, .. } => {
                if stages.is_empty() {
                    let message = "an empty list: use `type: constant` for one weight".to_owned();
                    issues.push(("stages".to_owned(), message));
                }
                let mut start = 0;
                for (i, stage) in stages.iter().enumerate() {
                    if stage.until_step <= start {
                        let message =
                            format!("{} is not above the step at which it starts, {start}", stage.until_step);
                        issues.push((format!("stages[{i}].until_step"), message));
                    }
                    start = stage.until_step;
                }
            }
        }
        issues
    }
}

/// The weight at each of the first `steps` training steps: what a whole run sees.
pub fn every_lambda(schedule: &Schedule, steps: u64) -> impl Iterator<Item = f64> + '_ {
    (0..steps).map(|step| schedule.at(step))
}

fn along(from: f64, to: f64, steps: u64, step: u64, rest: impl Fn(f64) -> f64) -> f64 {
    if step >= steps {
        return to;
    }
    // Clamped: rounding must not carry a weight over the bound that its ends were checked against.
    (to + (from - to) * rest(step as f64 / steps as f64)).max(from.min(to)).min(from.max(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            let values: Vec<f64> = every_lambda(&schedule, 51).collect();
            assert!(values.windows(2).all(|w| w[1] < w[0]), "{schedule:?}");
            assert_eq!(values.len(), 51);
            assert!(every_lambda(&schedule, 63).skip(50).all(|value| value.to_bits() == 0), "{schedule:?}");
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
        assert_eq!((schedule.length(), schedule.peak()), (5, 0.3));
    }

    #[test]
    fn every_fault_is_named_with_its_key() {
        let (from, to, steps) = (0.1, 0.0, 10);
        let stage = |until_step, value| StageValue { until_step, value };
        let cases = [
            (Schedule::Constant { value: -0.1 }, vec!["value: -0.1 is not between 0 and 1"]),
            (Schedule::Constant { value: f64::NAN }, vec!["value: NaN is not between 0 and 1"]),
            (Schedule::Linear { from: f64::INFINITY, to, steps }, vec!["from: inf is not between 0 and 1"]),
            (
                Schedule::Cosine { from, to: 1.5, steps: 0 },
                vec!["to: 1.5 is not between 0 and 1", "steps: 0 is below 1"],
            ),
            (
                Schedule::Exponential { from: 2.0, to, steps: 0 },
                vec!["from: 2 is not between 0 and 1", "steps: 0 is below 1"],
            ),
            (
                Schedule::Stages { stages: vec![], then: 0.0 },
                vec!["stages: an empty list: use `type: constant` for one weight"],
            ),
            (
                Schedule::Stages {
                    stages: vec![stage(0, 0.1), stage(5, 1.2), stage(5, 0.1)],
                    then: f64::NAN,
                },
                vec![
                    "stages[1].value: 1.2 is not between 0 and 1",
                    "then: NaN is not between 0 and 1",
                    "stages[0].until_step: 0 is not above the step at which it starts, 0",
                    "stages[2].until_step: 5 is not above the step at which it starts, 5",
                ],
            ),
            (Schedule::Constant { value: 1.0 }, vec![]),
            (Schedule::Linear { from, to, steps }, vec![]),
        ];
        for (schedule, wanted) in cases {
            let found: Vec<String> = schedule.issues().iter().map(|(k, m)| format!("{k}: {m}")).collect();
            assert_eq!(found, wanted, "{schedule:?}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_the_tag_chooses() {
        let read = |text: &str| serde_json::from_str::<Schedule>(text);
        assert_eq!(
            read(r#"{"type": "cosine", "from": 0.1, "to": 0, "steps": 4}"#).unwrap(),
            Schedule::Cosine { from: 0.1, to: 0.0, steps: 4 }
        );
        for bad in [
            r#"{"type": "cosine", "from": 0.1, "to": 0, "steps": 4, "value": 1}"#,
            r#"{"type": "constant", "from": 0.1}"#,
            r#"{"type": "stages", "stages": [{"until_step": 1, "value": 0, "name": "x"}], "then": 0}"#,
            r#"{"type": "linaer", "from": 0.1, "to": 0, "steps": 4}"#,
            r#"{"from": 0.1, "to": 0, "steps": 4}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// No rounding carries a weight past the ends that were checked, rising or falling.
        #[test]
        fn weights_stay_between_their_ends(from in 0.0..=1.0f64, to in 0.0..=1.0f64, steps in 1u64..200) {
            for schedule in [
                Schedule::Linear { from, to, steps },
                Schedule::Cosine { from, to, steps },
                Schedule::Exponential { from, to, steps },
            ] {
                prop_assert!((schedule.at(0) - from).abs() < 1e-15);
                prop_assert_eq!(schedule.at(steps).to_bits(), to.to_bits());
                for value in every_lambda(&schedule, steps + 10) {
                    prop_assert!(value >= from.min(to) && value <= schedule.peak());
                }
            }
        }
    }
}
