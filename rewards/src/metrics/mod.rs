//! Task metrics: an answer's text against a reference (a string, a list or a map).

mod exact;
mod f1;
mod fanoutqa;
mod item_f1;
mod reference;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How an answer is compared with the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The whole answer, after `SQuAD` normalisation.
    Exact,
    /// Token F1 after `SQuAD` normalisation.
    F1,
    /// F1 over a set of items (list) or key–value rows (map), separated by `;` or line breaks in the answer.
    ItemF1,
    /// Share of reference strings found in the answer.
    FanoutqaLoose,
    /// 1 when all reference strings are found, else 0.
    FanoutqaStrict,
}

/// What a metric gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// From 0 to 1.
    pub value: f64,
    /// Every item right.
    pub success: bool,
}

// An empty reference is never met, whatever the metric: silence must not earn a reward.
impl Score {
    /// A share; success is the whole of it.
    fn share(part: usize, whole: usize) -> Self {
        let value = if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Self { value, success: whole > 0 && part == whole }
    }

    /// F1 = 2PR / (P + R) = 2·common / (got + wanted); success is the two being equal.
    fn f1(common: usize, got: usize, wanted: usize) -> Self {
        Self::share(2 * common, got + wanted)
    }

    fn all_or_nothing(success: bool) -> Self {
        Self { value: f64::from(u8::from(success)), success }
    }
}

impl Metric {
    /// Scores `answer` against `reference`.
    pub fn score(self, answer: &str, reference: &Value) -> Score {
        match self {
            Self::Exact => exact::score(answer, reference),
            Self::F1 => f1::score(answer, reference),
            Self::ItemF1 => item_f1::score(answer, reference),
            Self::FanoutqaLoose => fanoutqa::loose(answer, reference),
            Self::FanoutqaStrict => fanoutqa::strict(answer, reference),
        }
    }

    /// The name in configs and task files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::F1 => "f1",
            Self::ItemF1 => "item_f1",
            Self::FanoutqaLoose => "fanoutqa_loose",
            Self::FanoutqaStrict => "fanoutqa_strict",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const ALL: [Metric; 5] =
        [Metric::Exact, Metric::F1, Metric::ItemF1, Metric::FanoutqaLoose, Metric::FanoutqaStrict];

    #[test]
    fn names_are_those_of_task_files() {
        for metric in ALL {
            assert_eq!(json!(metric), json!(metric.name()));
        }
    }

    proptest! {
        /// What the bounds on the reward stand on: a score lies in [0, 1], and it is 1 exactly on success.
        #[test]
        fn scores_are_bounded_and_success_is_a_full_score(
            answer in "[a-cA. ;,'0-2\n]{0,12}", reference in "[a-cA. ;,'0-2\n]{0,12}"
        ) {
            for metric in ALL {
                for reference in [json!(reference), json!([reference, "b"]), json!({"a": reference})] {
                    let score = metric.score(&answer, &reference);
                    prop_assert!((0.0..=1.0).contains(&score.value), "{metric:?} {score:?}");
                    prop_assert_eq!(score.success, score.value >= 1.0, "{:?} {:?}", metric, score);
                }
            }
        }

        /// A text against itself is right, whatever it is made of.
        #[test]
        fn a_reference_answers_itself(text in "\\PC{0,20}[a-z0-9]{1,3}") {
            for metric in ALL {
                prop_assert!(metric.score(&text, &json!(text)).success, "{metric:?}");
            }
        }
    }
}
