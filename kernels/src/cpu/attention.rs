//! Causal attention of one query position over the paged KV of its sequence.

#![expect(clippy::inline_always, reason = "a body has to be compiled into the function of each level")]

use super::kv::{Half, KvShared};
use super::level::Level;
use super::math::{by_level, dot, exp};

/// Where a query stands.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The storage.
    pub kv: &'a KvShared<'a>,
    /// Block table of the sequence.
    pub blocks: &'a [u32],
    /// The decoder layer.
    pub layer: usize,
    /// The key/value head.
    pub head: usize,
    /// Position of the query; it sees positions `0..=position`.
    pub position: usize,
}

#[inline(always)]
fn attend_body(site: Site<'_>, query: &[f32], scores: &mut Vec<f32>, out: &mut [f32]) {
    let (width, per_block) = (query.len(), site.kv.block_tokens());
    let seen = site.position + 1;
    let scale = 1.0 / (width as f32).sqrt();
    scores.clear();
    for (b, block) in site.blocks[..seen.div_ceil(per_block)].iter().enumerate() {
        let keys = site.kv.read(*block, site.layer, Half::Key, site.head);
        let here = per_block.min(seen - b * per_block);
        scores.extend(keys.chunks_exact(width).take(here).map(|key| dot(query, key) * scale));
    }
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - top);
    }
    let total: f32 = scores.iter().sum();
    out.fill(0.0);
    for (b, block) in site.blocks[..seen.div_ceil(per_block)].iter().enumerate() {
        let values = site.kv.read(*block, site.layer, Half::Value, site.head);
        let weights = &scores[b * per_block..seen.min((b + 1) * per_block)];
        for (value, weight) in values.chunks_exact(width).zip(weights) {
            for (o, v) in out.iter_mut().zip(value) {
                *o += weight * v;
            }
        }
    }
    let scale = 1.0 / total;
    for o in out.iter_mut() {
        *o *= scale;
    }
}

/// softmax(q·K / √d)·V for one head; positions are summed from 0 upwards, whatever the batch.
pub fn attend(level: Level, site: Site<'_>, query: &[f32], scores: &mut Vec<f32>, out: &mut [f32]) {
    by_level!(level, attend_body(site: Site<'_>, query: &[f32], scores: &mut Vec<f32>, out: &mut [f32]));
}
