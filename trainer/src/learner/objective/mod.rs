//! Objectives: what is minimised. One is put together of four parts that can be chosen one by one (the ratio's grain, the
//! clip, the aggregation, the weight τ of the squared log ratio); a published one names a row of them, and the advantage
//! that goes with it. docs/objectives.md has the table.

mod aggregation;
mod clip;
mod ratio;

use parl_rewards::advantage::{Baseline, Rule, Scale};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use aggregation::Aggregation;
pub use clip::Clip;
pub use ratio::Ratio;

use super::Sample;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Objective {
    /// Cross-entropy on the masked tokens: the warm start's, not a run's.
    Sft,
    /// K2.5's token objective (arXiv 2602.02276, Eq. 1).
    K25 {
        /// Lower end of the ratio's range.
        #[serde(default = "k25_alpha")]
        alpha: f64,
        /// Upper end.
        #[serde(default = "k25_beta")]
        beta: f64,
        /// Weight of the squared log ratio.
        #[serde(default = "k25_tau")]
        tau: f64,
    },
    /// GRPO (arXiv 2402.03300) without the reference model.
    Grpo {
        /// The ratio may fall by this much.
        #[serde(default = "ppo_clip")]
        clip_low: f64,
        /// The ratio may rise by this much.
        #[serde(default = "ppo_clip")]
        clip_high: f64,
    },
    /// DAPO (arXiv 2503.14476) without sampling again: groups that teach nothing are left out.
    Dapo {
        /// The ratio may fall by this much.
        #[serde(default = "ppo_clip")]
        clip_low: f64,
        /// The ratio may rise by this much.
        #[serde(default = "dapo_clip_high")]
        clip_high: f64,
    },
    /// GSPO (arXiv 2507.18071): one ratio an episode.
    Gspo {
        /// The ratio may fall by this much.
        #[serde(default = "gspo_clip_low")]
        clip_low: f64,
        /// The ratio may rise by this much.
        #[serde(default = "gspo_clip_high")]
        clip_high: f64,
    },
    /// CISPO (MiniMax-M1, arXiv 2506.13585): the clipped ratio is a weight, no token loses its gradient.
    Cispo {
        /// The weight may fall by this much; 1 is no bound.
        #[serde(default = "cispo_clip_low")]
        clip_low: f64,
        /// The weight may rise by this much.
        #[serde(default = "cispo_clip_high")]
        clip_high: f64,
    },
    /// RLOO (arXiv 2402.14740): REINFORCE against the mean of the others, an episode as one action.
    Rloo,
    /// Dr. GRPO (arXiv 2503.20783): GRPO without the two divisions that favour lengths and easy tasks.
    DrGrpo {
        /// The ratio may fall by this much.
        #[serde(default = "ppo_clip")]
        clip_low: f64,
        /// The ratio may rise by this much.
        #[serde(default = "ppo_clip")]
        clip_high: f64,
        /// Tokens that an episode's sum is divided by; `null` takes `rollout.orchestrator.max_context_tokens`.
        #[serde(default)]
        #[schemars(range(min = 1, max = 1_000_000_000))]
        length: Option<u32>,
    },
    /// Each part of your own choice; the advantage is `rewards.baseline` and `rewards.scale`, by default K2.5's.
    Custom {
        /// Grain of the ratio.
        ratio: Ratio,
        /// How it is bounded.
        clip: Clip,
        /// What a token's loss is divided by.
        aggregation: Aggregation,
        /// Weight of the squared log ratio of each token.
        #[serde(default)]
        tau: f64,
        /// Groups whose rewards are all equal are in no divisor.
        #[serde(default)]
        skip_flat_groups: bool,
    },
}

// K2.5's report leaves the three open; these are this project's choice.
fn k25_alpha() -> f64 {
    0.8
}

fn k25_beta() -> f64 {
    1.25
}

fn k25_tau() -> f64 {
    1e-3
}

/// PPO's own; GRPO's and Dr. GRPO's papers keep it.
fn ppo_clip() -> f64 {
    0.2
}

fn dapo_clip_high() -> f64 {
    0.28
}

fn gspo_clip_low() -> f64 {
    3e-4
}

fn gspo_clip_high() -> f64 {
    4e-4
}

/// The paper sets no lower bound.
fn cispo_clip_low() -> f64 {
    1.0
}

/// The paper does not tell its upper bound; a ratio of 5 is a choice.
fn cispo_clip_high() -> f64 {
    4.0
}

/// What an objective is put together of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parts {
    pub ratio: Ratio,
    pub clip: Clip,
    pub aggregation: Aggregation,
    /// Weight of the squared log ratio of each token.
    pub tau: f64,
    /// Groups whose advantages are all 0 are in no divisor.
    pub skip_flat_groups: bool,
}

/// Trained tokens of some samples, which are whole in here.
pub(super) struct Tokens<'a> {
    /// `[N]`: under the weights that are trained, with gradient.
    pub logp: &'a Tensor,
    /// `[N]`: as recorded when they were drawn.
    pub old: &'a Tensor,
    /// `[N]`: of their episodes.
    pub advantage: &'a Tensor,
    /// `[N]`: each token's share of the loss.
    pub weight: &'a Tensor,
    /// `[N]`, whole numbers: which sample each is of.
    pub sequence: &'a Tensor,
    /// `[S]`: how many each sample has.
    pub lengths: &'a Tensor,
}

impl Objective {
    /// Its parts; `None` for cross-entropy, which has no ratio.
    pub(super) fn parts(&self) -> Option<Parts> {
        let ppo = |low: f64, high: f64| Clip::Ppo { low: 1.0 - low, high: 1.0 + high };
        let token = |clip, aggregation| Parts {
            ratio: Ratio::Token,
            clip,
            aggregation,
            tau: 0.0,
            skip_flat_groups: false,
        };
        Some(match *self {
            Self::Sft => return None,
            Self::K25 { alpha, beta, tau } => {
                Parts { tau, ..token(Clip::Mask { low: alpha, high: beta }, Aggregation::GroupTokens) }
            }
            Self::Grpo { clip_low, clip_high } => token(ppo(clip_low, clip_high), Aggregation::SequenceMean),
            Self::Dapo { clip_low, clip_high } => {
                Parts { skip_flat_groups: true, ..token(ppo(clip_low, clip_high), Aggregation::BatchTokens) }
            }
            Self::Gspo { clip_low, clip_high } => {
                Parts { ratio: Ratio::Sequence, ..token(ppo(clip_low, clip_high), Aggregation::SequenceMean) }
            }
            Self::Cispo { clip_low, clip_high } => {
                let clip = Clip::Detached { low: 1.0 - clip_low, high: 1.0 + clip_high };
                Parts { skip_flat_groups: true, ..token(clip, Aggregation::BatchTokens) }
            }
            // The log-prob of an episode is the sum over its tokens, divided by nothing.
            Self::Rloo => token(Clip::None, Aggregation::Constant { length: 1 }),
            Self::DrGrpo { clip_low, clip_high, length } => {
                token(ppo(clip_low, clip_high), Aggregation::Constant { length: length.unwrap_or(1) })
            }
            Self::Custom { ratio, clip, aggregation, tau, skip_flat_groups } => {
                Parts { ratio, clip, aggregation, tau, skip_flat_groups }
            }
        })
    }

    /// How the paper turns a group's rewards into advantages.
    pub fn rule(&self) -> Rule {
        match self {
            Self::Grpo { .. } | Self::Dapo { .. } | Self::Gspo { .. } | Self::Cispo { .. } => {
                Rule { baseline: Baseline::Mean, scale: Scale::Std }
            }
            Self::Rloo => Rule { baseline: Baseline::LeaveOneOut, scale: Scale::None },
            Self::Sft | Self::K25 { .. } | Self::DrGrpo { .. } | Self::Custom { .. } => Rule::default(),
        }
    }

    /// Takes `tokens` where a fixed length was left open.
    pub(crate) fn resolve_length(&mut self, tokens: u32) {
        if let Self::DrGrpo { length, .. } = self {
            length.get_or_insert(tokens);
        }
    }

    /// Each sample's tokens' share of the loss.
    pub(super) fn shares(&self, samples: &[Sample]) -> Vec<f64> {
        match self.parts() {
            None => Aggregation::BatchTokens.shares(samples, false),
            Some(parts) => parts.aggregation.shares(samples, parts.skip_flat_groups),
        }
    }

    /// Σ weight · (loss of a token), a scalar.
    pub(super) fn loss(&self, tokens: &Tokens<'_>) -> Tensor {
        let per_token = match self.parts() {
            None => -tokens.logp,
            Some(parts) => {
                let log_ratio = tokens.logp - tokens.old;
                let of_grain = parts.ratio.log(&log_ratio, tokens);
                let gain = parts.clip.gain(&of_grain, tokens.logp, tokens.advantage);
                if parts.tau > 0.0 { parts.tau * log_ratio.square() - gain } else { -gain }
            }
        };
        (per_token * tokens.weight).sum(None)
    }

    /// Tokens whose ratio is below the bounds, and above them.
    pub(super) fn outside(&self, tokens: &Tokens<'_>) -> (f64, f64) {
        let Some(parts) = self.parts() else { return (0.0, 0.0) };
        let Some((low, high)) = parts.clip.bounds() else { return (0.0, 0.0) };
        let log_ratio = (tokens.logp - tokens.old).to_kind(Kind::Double);
        let log_ratio = parts.ratio.log(&log_ratio, tokens);
        let count = |t: &Tensor| t.to_kind(Kind::Double).sum(None).double_value(&[]);
        (count(&log_ratio.lt(low.ln())), count(&log_ratio.gt(high.ln())))
    }

    /// Whether a sample has a gradient. Without an advantage only τ's square is left, whose gradient is 0 as long as the
    /// weights are those that drew the sample.
    pub(super) fn asks(&self, sample: &Sample) -> bool {
        let pulled = self.parts().is_none_or(|parts| parts.tau > 0.0 && sample.stale);
        sample.mask.contains(&true) && (sample.advantage != 0.0 || pulled)
    }

    /// What is out of bounds: `(key, message)`, keys relative to the objective.
    pub(super) fn issues(&self) -> Vec<(String, String)> {
        let mut issues = Vec::new();
        let mut within = |key: &str, value: f64, low: f64, high: f64| {
            // A NaN is within nothing.
            if !(low..=high).contains(&value) {
                issues.push((key.to_owned(), format!("{value} is not within {low} to {high}")));
            }
        };
        match *self {
            Self::Sft => {
                let message = "`sft` has no rewards to learn from; use `trainer sft`".to_owned();
                issues.push(("type".to_owned(), message));
            }
            Self::K25 { alpha, beta, tau } => {
                within("alpha", alpha, 1e-6, 1.0);
                within("beta", beta, 1.0, 1e6);
                within("tau", tau, 0.0, 1e3);
            }
            Self::Grpo { clip_low, clip_high }
            | Self::Dapo { clip_low, clip_high }
            | Self::Gspo { clip_low, clip_high }
            | Self::DrGrpo { clip_low, clip_high, .. } => {
                within("clip_low", clip_low, 0.0, 0.999_999);
                within("clip_high", clip_high, 0.0, 1e6);
            }
            Self::Cispo { clip_low, clip_high } => {
                within("clip_low", clip_low, 0.0, 1.0);
                within("clip_high", clip_high, 0.0, 1e6);
            }
            Self::Rloo => {}
            Self::Custom { clip, tau, .. } => {
                if let Some((low, high)) = clip.bounds() {
                    within("clip.low", low, 0.0, 1.0);
                    within("clip.high", high, 1.0, 1e6);
                }
                within("tau", tau, 0.0, 1e3);
            }
        }
        issues
    }
}

#[cfg(test)]
mod tests;
