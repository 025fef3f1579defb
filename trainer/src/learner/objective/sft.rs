//! Cross-entropy: the warm start learns to say what the demonstration says.

use tch::Tensor;

use super::Tokens;

pub(super) fn loss(tokens: &Tokens<'_>) -> Tensor {
    -tokens.logp
}
