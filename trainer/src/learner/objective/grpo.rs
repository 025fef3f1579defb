//! PPO's clipped objective with a group's advantage (GRPO), bounds on both sides of their own.

use tch::Tensor;

use super::Tokens;

/// The original's symmetric 0.2 below, DAPO's wider 0.28 above.
pub(super) fn clip_low() -> f64 {
    0.2
}

/// See [`clip_low`].
pub(super) fn clip_high() -> f64 {
    0.28
}

pub(super) fn loss(tokens: &Tokens<'_>, clip_low: f64, clip_high: f64) -> Tensor {
    let ratio = (tokens.logp - tokens.old).exp();
    let clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high);
    -(ratio * tokens.advantage).minimum(&(clipped * tokens.advantage))
}
