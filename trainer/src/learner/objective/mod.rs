//! Objectives: what is minimised, one a file. All take flat tensors over the trained tokens of a micro-batch.

mod grpo;
mod k25;
mod sft;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Cross-entropy on the masked tokens: the warm start's, not a run's.
    Sft,
    /// K2.5's token objective.
    K25 {
        /// Lower end of the ratio's range.
        #[serde(default = "k25::alpha")]
        alpha: f64,
        /// Upper end.
        #[serde(default = "k25::beta")]
        beta: f64,
        /// Weight of the squared log ratio.
        #[serde(default = "k25::tau")]
        tau: f64,
    },
    /// PPO's clipped objective with the group's advantage.
    Grpo {
        /// The ratio may fall by this much.
        #[serde(default = "grpo::clip_low")]
        clip_low: f64,
        /// The ratio may rise by this much.
        #[serde(default = "grpo::clip_high")]
        clip_high: f64,
    },
}

/// Tokens of a micro-batch; every tensor is `[N]`.
pub(super) struct Tokens<'a> {
    /// Under the weights that are trained, with gradient.
    pub logp: &'a Tensor,
    /// As recorded when they were drawn.
    pub old: &'a Tensor,
    /// Of their episodes.
    pub advantage: &'a Tensor,
    /// Each token's share of the loss.
    pub weight: &'a Tensor,
}

impl Objective {
    /// Σ weight · (loss of a token), a scalar.
    pub(super) fn loss(&self, tokens: &Tokens<'_>) -> Tensor {
        let per_token = match self {
            Self::Sft => sft::loss(tokens),
            Self::K25 { alpha, beta, tau } => k25::loss(tokens, *alpha, *beta, *tau),
            Self::Grpo { clip_low, clip_high } => grpo::loss(tokens, *clip_low, *clip_high),
        };
        (per_token * tokens.weight).sum(None)
    }

    /// Logs of the ratio's bounds, where there are some.
    pub(super) fn log_bounds(&self) -> Option<(f64, f64)> {
        match self {
            Self::Sft => None,
            Self::K25 { alpha, beta, .. } => Some((alpha.ln(), beta.ln())),
            Self::Grpo { clip_low, clip_high } => Some(((1.0 - clip_low).ln(), (1.0 + clip_high).ln())),
        }
    }

    /// Whether a sample whose advantage is 0 can be left out: before the first update on it, the ratio is 1 and the
    /// gradient of the rest (τ's square) is 0.
    pub(super) fn needs_advantage(&self) -> bool {
        !matches!(self, Self::Sft)
    }

    /// Whether the weights of tokens are taken within their group (and groups averaged), or over all tokens alike.
    pub(super) fn by_group(&self) -> bool {
        matches!(self, Self::K25 { .. })
    }
}
