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

impl Score {
    /// A share; success is the whole of it.
    fn share(part: usize, whole: usize) -> Self {
        let value = if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Self { value, success: whole > 0 && part == whole }
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
