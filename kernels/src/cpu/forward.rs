//! The forward pass over some rows of a plan, on one thread.

use super::attention::{Site, attend};
use super::gemm::{Packed, gemm};
use super::kv::{Half, KvShared};
use super::level::Level;
use super::math::{rms_norm, swiglu};
use super::model::{Layer, Model};
use crate::backend::{Drawn, PlanRow};
use crate::sampling;

/// Buffers that live on between passes.
#[derive(Debug, Default)]
pub struct Scratch {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
    projected: Vec<f32>,
    logits: Vec<f32>,
    scores: Vec<f32>,
    sorted: Vec<(f64, u32)>,
}

fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// A token's place: which row of the plan, and its position there.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    position: usize,
}

/// What to compute after the last layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A token for each row that draws.
    Draws,
    /// Logits after every input token.
    Logits,
}

/// What came out: one of the two is filled.
#[derive(Debug, Default)]
pub struct Forwarded {
    /// For each row, where one was asked for.
    pub draws: Vec<Option<Drawn>>,
    /// `[row][token][vocab]`.
    pub logits: Vec<Vec<Vec<f32>>>,
}

/// Runs `rows` through `model`, filling their KV.
pub fn forward(
    level: Level,
    model: &Model,
    kv: &KvShared<'_>,
    rows: &[&PlanRow],
    wanted: Wanted,
    scratch: &mut Scratch,
) -> Forwarded {
    let d = model.shape.hidden;
    let places: Vec<Place> = rows
        .iter()
        .enumerate()
        .flat_map(|(row, r)| (0..r.tokens.len()).map(move |i| Place { row, position: r.start as usize + i }))
        .collect();
    let n = places.len();
    let tokens = rows.iter().flat_map(|r| &r.tokens);
    for (x, token) in sized(&mut scratch.x, n * d).chunks_exact_mut(d).zip(tokens) {
        let at = *token as usize * d;
        x.copy_from_slice(&model.embed[at..at + d]);
    }
    for (l, layer) in model.layers.iter().enumerate() {
        attention(level, model, layer, l, kv, rows, &places, scratch);
        feed_forward(level, model, layer, n, scratch);
    }
    head(level, model, rows, wanted, scratch)
}

/// The head, for the tokens that are asked for and no others.
fn head(level: Level, model: &Model, rows: &[&PlanRow], wanted: Wanted, scratch: &mut Scratch) -> Forwarded {
    let (d, vocab, eps) = (model.shape.hidden, model.head.n(), model.shape.rms_eps as f32);
    let mut tokens = Vec::new();
    let mut first = 0;
    for row in rows {
        let next = first + row.tokens.len();
        match wanted {
            Wanted::Logits => tokens.extend(first..next),
            Wanted::Draws => tokens.extend(row.draw.map(|_| next - 1)),
        }
        first = next;
    }
    let normed = sized(&mut scratch.normed, tokens.len() * d);
    for (token, out) in tokens.iter().zip(normed.chunks_exact_mut(d)) {
        rms_norm(level, &scratch.x[token * d..(token + 1) * d], &model.norm, eps, out);
    }
    project(level, normed, &model.head, tokens.len(), &mut scratch.logits);
    let mut logits = scratch.logits[..tokens.len() * vocab].chunks_exact(vocab);
    let mut result = Forwarded::default();
    for row in rows {
        match wanted {
            Wanted::Logits => {
                result.logits.push(logits.by_ref().take(row.tokens.len()).map(<[f32]>::to_vec).collect());
            }
            Wanted::Draws => {
                let drawn = row.draw.as_ref().zip(row.draw.and_then(|_| logits.next()));
                result
                    .draws
                    .push(drawn.map(|(draw, logits)| sampling::draw(logits, draw, &mut scratch.sorted)));
            }
        }
    }
    result
}

fn project(level: Level, input: &[f32], w: &Packed, rows: usize, out: &mut Vec<f32>) {
    gemm(level, input, w, sized(out, rows * w.n()));
}

fn add_residual(x: &mut [f32], update: &[f32]) {
    for (x, u) in x.iter_mut().zip(update) {
        *x += u;
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one layer's whole surroundings; a struct would only rename them"
)]
fn attention(
    level: Level,
    model: &Model,
    layer: &Layer,
    l: usize,
    kv: &KvShared<'_>,
    rows: &[&PlanRow],
    places: &[Place],
    scratch: &mut Scratch,
) {
    let shape = &model.shape;
    let (d, hd, heads, kv_heads, eps) =
        (shape.hidden, shape.head_dim, shape.heads, shape.kv_heads, shape.rms_eps as f32);
    let n = places.len();
    for (x, out) in
        scratch.x[..n * d].chunks_exact(d).zip(sized(&mut scratch.normed, n * d).chunks_exact_mut(d))
    {
        rms_norm(level, x, &layer.attn_norm, eps, out);
    }
    project(level, &scratch.normed[..n * d], &layer.qkv, n, &mut scratch.qkv);
    let width = shape.qkv_rows();
    for (qkv, place) in scratch.qkv[..n * width].chunks_exact_mut(width).zip(places) {
        if let Some(bias) = &layer.qkv_bias {
            add_residual(qkv, bias);
        }
        for (h, head) in qkv[..(heads + kv_heads) * hd].chunks_exact_mut(hd).enumerate() {
            let norm = if h < heads { &layer.q_norm } else { &layer.k_norm };
            if let Some(weight) = norm {
                let before = head.to_vec();
                rms_norm(level, &before, weight, eps, head);
            }
            model.rope.rotate(head, place.position);
        }
        let (block_tokens, row) = (kv.block_tokens(), rows[place.row]);
        let (block, slot) = (row.blocks[place.position / block_tokens], place.position % block_tokens);
        for h in 0..kv_heads {
            let key = &qkv[(heads + h) * hd..(heads + h + 1) * hd];
            let value = &qkv[(heads + kv_heads + h) * hd..(heads + kv_heads + h + 1) * hd];
            kv.write(block, l, Half::Key, h, slot, key);
            kv.write(block, l, Half::Value, h, slot, value);
        }
    }
    let attended = sized(&mut scratch.attended, n * heads * hd);
    for (i, place) in places.iter().enumerate() {
        let blocks = &rows[place.row].blocks;
        for h in 0..heads {
            let head = h * kv_heads / heads;
            let site = Site { kv, blocks, layer: l, head, position: place.position };
            let query = &scratch.qkv[i * width + h * hd..i * width + (h + 1) * hd];
            let at = (i * heads + h) * hd;
            attend(level, site, query, &mut scratch.scores, &mut attended[at..at + hd]);
        }
    }
    project(level, attended, &layer.o, n, &mut scratch.projected);
    add_residual(&mut scratch.x[..n * d], &scratch.projected);
}

fn feed_forward(level: Level, model: &Model, layer: &Layer, n: usize, scratch: &mut Scratch) {
    let (d, ffn, eps) = (model.shape.hidden, model.shape.ffn, model.shape.rms_eps as f32);
    for (x, out) in
        scratch.x[..n * d].chunks_exact(d).zip(sized(&mut scratch.normed, n * d).chunks_exact_mut(d))
    {
        rms_norm(level, x, &layer.ffn_norm, eps, out);
    }
    project(level, &scratch.normed[..n * d], &layer.gate_up, n, &mut scratch.gate_up);
    let inner = sized(&mut scratch.inner, n * ffn);
    for (both, out) in scratch.gate_up[..n * 2 * ffn].chunks_exact(2 * ffn).zip(inner.chunks_exact_mut(ffn)) {
        swiglu(level, both, out);
    }
    project(level, inner, &layer.down, n, &mut scratch.projected);
    add_residual(&mut scratch.x[..n * d], &scratch.projected);
}
