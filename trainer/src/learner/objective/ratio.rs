//! The grain of the ratio π_θ / π_old: what "how much likelier is it now" is asked of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Tokens;

/// Grain of the ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// Each token has its own.
    Token,
    /// All trained tokens of an episode share e to the mean of their log ratios (GSPO, arXiv 2507.18071).
    Sequence,
}

impl Ratio {
    /// Log ratios at this grain, `[N]`, from those of the tokens, `[N]`.
    ///
    /// The paper's plain form: the gradient goes through the mean. Its token form with a stopped gradient has the same
    /// value and gradient wherever an episode's tokens have one advantage and one weight, as they have here.
    pub(super) fn log(self, log_ratio: &Tensor, tokens: &Tokens<'_>) -> Tensor {
        match self {
            Self::Token => log_ratio.shallow_clone(),
            Self::Sequence => {
                let lengths = tokens.lengths.to_kind(log_ratio.kind());
                let sums = lengths.zeros_like().index_add(0, tokens.sequence, log_ratio);
                (sums / lengths.clamp_min(1.0)).index_select(0, tokens.sequence)
            }
        }
    }
}
