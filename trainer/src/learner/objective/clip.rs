//! What becomes of a gain whose ratio has left its bounds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// How the ratio is bounded; `low` and `high` are bounds of the ratio itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Clip {
    /// Not at all: ratio · advantage.
    None,
    /// Outside of the bounds there is no gradient, whatever the advantage's sign (K2.5, arXiv 2602.02276).
    Mask {
        /// From 0 to 1.
        low: f64,
        /// From 1.
        high: f64,
    },
    /// The smaller of the gains with the ratio and with the ratio cut to the bounds (PPO, arXiv 1707.06347): no gradient
    /// where the ratio has gone too far in the advantage's own direction.
    Ppo {
        /// From 0 to 1.
        low: f64,
        /// From 1.
        high: f64,
    },
    /// The ratio, cut to the bounds, is a mere weight of advantage · log-prob: every token keeps a gradient (CISPO, arXiv
    /// 2506.13585).
    Detached {
        /// From 0 to 1; 0 is no bound.
        low: f64,
        /// From 1.
        high: f64,
    },
}

impl Clip {
    /// Lower and upper end of the ratio, where there are some.
    pub(super) fn bounds(self) -> Option<(f64, f64)> {
        match self {
            Self::None => None,
            Self::Mask { low, high } | Self::Ppo { low, high } | Self::Detached { low, high } => {
                Some((low, high))
            }
        }
    }

    /// What is to be made large: a gain for each token, `[N]`, from its log ratio, its log-prob and its advantage.
    pub(super) fn gain(self, log_ratio: &Tensor, logp: &Tensor, advantage: &Tensor) -> Tensor {
        match self {
            Self::None => log_ratio.exp() * advantage,
            Self::Mask { low, high } => {
                let inside = log_ratio.ge(low.ln()).logical_and(&log_ratio.le(high.ln()));
                let inside = inside.to_kind(log_ratio.kind()).detach();
                // Outside of the range the ratio may overflow, and 0 · inf is no number: it is cut to the range first.
                inside * log_ratio.clamp(low.ln(), high.ln()).exp() * advantage
            }
            Self::Ppo { low, high } => {
                let ratio = log_ratio.exp();
                let clipped = ratio.clamp(low, high);
                (ratio * advantage).minimum(&(clipped * advantage))
            }
            Self::Detached { low, high } => log_ratio.exp().clamp(low, high).detach() * advantage * logp,
        }
    }
}
