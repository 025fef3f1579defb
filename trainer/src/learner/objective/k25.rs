//! Kimi K2.5's token objective (report, Eq. 1): Clip(π_θ/π_old, α, β)·(r − r̄) − τ·(log π_θ/π_old)².
//!
//! "Clip" is a gradient mask: inside of the range a token's gradient is as usual, outside it is zero, whatever the
//! advantage's sign. The τ term is not masked.

use tch::{Kind, Tensor};

use super::Tokens;

/// The report leaves the three open; these are this project's choice.
pub(super) fn alpha() -> f64 {
    0.8
}

/// See [`alpha`].
pub(super) fn beta() -> f64 {
    1.25
}

/// See [`alpha`].
pub(super) fn tau() -> f64 {
    1e-3
}

pub(super) fn loss(tokens: &Tokens<'_>, alpha: f64, beta: f64, tau: f64) -> Tensor {
    let log_ratio = tokens.logp - tokens.old;
    let inside = log_ratio.ge(alpha.ln()).logical_and(&log_ratio.le(beta.ln()));
    let inside = inside.to_kind(tokens.logp.kind()).detach();
    debug_assert_ne!(inside.kind(), Kind::Bool);
    // Outside of the range the ratio may overflow, and 0 · inf is no number: it is cut to the range first.
    let ratio = log_ratio.clamp(alpha.ln(), beta.ln()).exp();
    tau * log_ratio.square() - inside * ratio * tokens.advantage
}
