//! QK-Clip (Kimi K2 report, MuonClip): where an attention logit passes the bound, the query and key projections of its
//! heads are scaled down until it does not.
//!
//! A key head is shared by a group of query heads here, so the group takes its worst head's factor γ, √γ on each side.
//! The logits are measured on a fixed few sequences of the batch, without gradient, one sequence at a time.

use parl_kernels::shape::ModelShape;
use tch::{Kind, Tensor};

use super::model::{Packed, Params, hidden_watched};

/// The largest causal attention logit of each group of heads in each layer, `[layers][kv_heads]`.
pub(super) fn peaks(shape: &ModelShape, params: &Params, sequences: &[Vec<i64>]) -> Vec<Vec<f64>> {
    let mut peaks = vec![vec![f64::NEG_INFINITY; shape.kv_heads]; shape.layers];
    for tokens in sequences {
        let packed = Packed::one(tokens, (params["embed"].kind(), params["embed"].device()));
        let mut watch = |layer: usize, q: &Tensor, k: &Tensor| {
            let group = (shape.heads / shape.kv_heads) as i64;
            let (q, k) = (q.transpose(0, 1), k.transpose(0, 1).repeat_interleave_self_int(group, 0, None));
            let scores = q.matmul(&k.transpose(-2, -1)) / (shape.head_dim as f64).sqrt();
            let hidden = scores.ones_like().triu(1).to_kind(Kind::Bool);
            // [heads, T, T] to the largest of each query head.
            let heads = scores.masked_fill(&hidden, f64::NEG_INFINITY).amax([1, 2], false);
            for head in 0..shape.heads {
                let peak = &mut peaks[layer][head / group as usize];
                *peak = peak.max(heads.double_value(&[head as i64]));
            }
        };
        let _ = tch::no_grad(|| hidden_watched(shape, params, &packed, &mut watch));
    }
    peaks
}

/// Scales the projections of every group whose peak passes `limit`; how many groups that were.
pub(super) fn clip(shape: &ModelShape, params: &Params, peaks: &[Vec<f64>], limit: f64) -> usize {
    let (hd, heads, kv_heads) = (shape.head_dim as i64, shape.heads as i64, shape.kv_heads as i64);
    let group = heads / kv_heads;
    let mut clipped = 0;
    for (layer, peaks) in peaks.iter().enumerate() {
        for (kv, peak) in peaks.iter().enumerate().filter(|(_, peak)| **peak > limit) {
            let (kv, factor) = (kv as i64, (limit / peak).sqrt());
            clipped += 1;
            for part in ["qkv", "qkv_bias"] {
                let Some(fused) = params.get(&format!("layers.{layer}.{part}")) else { continue };
                tch::no_grad(|| {
                    // Rows of the group's query heads, then of its key head.
                    for (from, rows) in [(kv * group * hd, group * hd), ((heads + kv) * hd, hd)] {
                        let mut rows = fused.narrow(0, from, rows);
                        rows.copy_(&(&rows * factor));
                    }
                });
            }
        }
    }
    clipped
}
