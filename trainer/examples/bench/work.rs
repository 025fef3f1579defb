//! The work, as scripts/bench/peers hands it to us and to the peers alike.

use std::path::Path;

use parl_kernels::shape::ModelShape;
use parl_rollout::durable;
use serde::Deserialize;

/// Element type of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// One file for all programs of a comparison: equal shapes, types and tokens, by construction.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// Sizes of the model.
    pub shape: ModelShape,
    /// Type of the weights.
    pub dtype: Dtype,
    /// Threads to compute on.
    pub threads: usize,
    /// Sequences drawn from each prompt.
    pub group: usize,
    /// Tokens drawn for each of them, exactly.
    pub new_tokens: u32,
    /// What the repetitions work on, in order.
    pub repetitions: Vec<Tokens>,
}

/// The tokens of one repetition.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// To draw from.
    pub prompts: Vec<Vec<u32>>,
    /// Whole sequences to learn from, `prompts · group` of them: the last `new_tokens` of each are trained on.
    pub sequences: Vec<Vec<u32>>,
}

/// Reads the file.
///
/// # Errors
/// When it is not there, or is no such work.
pub fn read(path: &Path) -> Result<Work, Box<dyn std::error::Error>> {
    let bytes = durable::read(path)?;
    let work: Work = serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    work.shape.validate()?;
    let drawn = work.new_tokens as usize;
    let short = work.repetitions.iter().flat_map(|r| &r.sequences).any(|s| s.len() <= drawn);
    if short || drawn == 0 || work.group == 0 || work.threads == 0 {
        return Err(format!("{}: a count is 0, or a sequence has no prompt", path.display()).into());
    }
    Ok(work)
}
