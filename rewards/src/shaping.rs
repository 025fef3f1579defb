//! Shaping: the parts of an episode's reward put together, in both published forms.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which formula puts the parts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardForm {
    /// The report's: λ1·r_parallel + λ2·r_finish + r_perf.
    #[default]
    K25,
    /// The launch blog's: λ·r_parallel + (1 − λ)·(I\[success\]·Q), with λ1 as λ.
    Blog,
}

impl RewardForm {
    /// The name in configs and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::K25 => "k25",
            Self::Blog => "blog",
        }
    }
}

/// What an episode earned, before weights; each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Parts {
    /// Task success and quality.
    pub perf: f64,
    /// Instantiation.
    pub parallel: f64,
    /// Share of assigned work that got done.
    pub finish: f64,
    /// Every item right.
    pub success: bool,
}

/// The weights at one step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Lambdas {
    /// λ1, of r_parallel (λ_aux in the blog form).
    pub parallel: f64,
    /// λ2, of r_finish.
    pub finish: f64,
}

/// One term of the reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// `r_perf`, `r_parallel` or `r_finish`.
    pub component: &'static str,
    /// Before its weight.
    pub raw: f64,
    /// Its weight.
    pub weight: f64,
    /// raw · weight.
    pub value: f64,
    /// The module of this crate that gave `raw`.
    pub source: &'static str,
}

/// The terms of the reward; the reward is the sum of their values in either form. The blog form has no r_finish: it
/// is listed all the same, with weight 0, so that every term can be read from the log.
pub fn shape(form: RewardForm, parts: Parts, lambdas: Lambdas) -> [Component; 3] {
    let (perf, perf_weight, finish_weight) = match form {
        RewardForm::K25 => (parts.perf, 1.0, lambdas.finish),
        RewardForm::Blog => (if parts.success { parts.perf } else { 0.0 }, 1.0 - lambdas.parallel, 0.0),
    };
    let term = |component, source, raw: f64, weight: f64| Component {
        component,
        raw,
        weight,
        value: raw * weight,
        source,
    };
    [
        term("r_perf", "metrics", perf, perf_weight),
        term("r_parallel", "parallel", parts.parallel, lambdas.parallel),
        term("r_finish", "finish", parts.finish, finish_weight),
    ]
}

/// Sum of the terms, in their order.
pub fn total(components: &[Component]) -> f64 {
    components.iter().map(|c| c.value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_by_hand() {
        let failed = Parts { perf: 0.8, parallel: 0.5, finish: 1.0, success: false };
        let solved = Parts { perf: 1.0, success: true, ..failed };
        let lambdas = Lambdas { parallel: 0.1, finish: 0.05 };
        let annealed = Lambdas::default();
        // form, parts, lambdas, values of r_perf, r_parallel, r_finish.
        let cases = [
            (RewardForm::K25, failed, lambdas, [0.8, 0.05, 0.05]),
            (RewardForm::K25, solved, lambdas, [1.0, 0.05, 0.05]),
            (RewardForm::K25, failed, annealed, [0.8, 0.0, 0.0]),
            (RewardForm::Blog, failed, lambdas, [0.0, 0.05, 0.0]),
            (RewardForm::Blog, solved, lambdas, [0.9, 0.05, 0.0]),
            (RewardForm::Blog, solved, annealed, [1.0, 0.0, 0.0]),
        ];
        for (form, parts, lambdas, values) in cases {
            let components = shape(form, parts, lambdas);
            for (c, wanted) in components.iter().zip(values) {
                assert!((c.value - wanted).abs() < 1e-12, "{form:?} {parts:?} {lambdas:?}: {c:?}");
                assert!((c.value - c.raw * c.weight).abs() < 1e-15, "{c:?}");
            }
            assert!((total(&components) - values.iter().sum::<f64>()).abs() < 1e-12);
            assert_eq!(components.map(|c| c.component), ["r_perf", "r_parallel", "r_finish"]);
        }
    }
}
