//! The forward pass of some rows of one weight set, on the thread that calls it (large products and long prefills
//! inside it go parallel by themselves).
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::attention::Attend;
use super::buffer::Aligned;
use super::gemm::{Mode, padded};
use super::kv::Kv;
use super::level::Level;
use super::math::{HeadTurn, rms_norm, swiglu, turn_heads};
use super::model::{Layer, Model, hidden_stride};
use super::times::{Part, Times, Watch};
use crate::KernelError;
use crate::backend::{Drawn, PlanRow};
use crate::sampling::{self, Workspace};

/// Rows of logits held at once: they stay in cache between the head and the draw.
const HEAD_ROWS: usize = 32;

/// Attention above this many multiply-adds is shared among threads.
const PARALLEL_FMAS: usize = 1 << 20;

/// Queries of a part of attention that one thread computes.
const PART_TOKENS: usize = 32;

/// Buffers of a pass, kept between passes.
#[derive(Default)]
pub(crate) struct Scratch {
    hidden: Aligned<f32>,
    normed: Aligned<f32>,
    qkv: Aligned<f32>,
    attended: Aligned<f32>,
    gate_up: Aligned<f32>,
    gated: Aligned<f32>,
    logits: Aligned<f32>,
    scores: Aligned<f32>,
    sampling: Workspace,
    spans: Vec<Span>,
}

/// Consecutive tokens of a row inside the batch of tokens.
#[derive(Clone, Copy)]
struct Span {
    /// Which row.
    row: usize,
    /// Its first token's place in the batch.
    first: usize,
    /// Tokens.
    tokens: usize,
    /// Position of the first.
    start: usize,
}

/// One pass's surroundings.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    /// Instructions.
    pub(crate) level: Level,
    /// Weights.
    pub(crate) model: &'a Model,
    /// The model's pool.
    pub(crate) kv: Kv,
    /// What its parts took is added to.
    pub(crate) times: &'a Times,
}

impl Pass<'_> {
    /// Runs `rows`, writing their KV, and draws where asked.
    ///
    /// # Errors
    /// [`KernelError::Sampling`] when a logit is not finite.
    ///
    /// # Safety
    /// The rows passed `plan::check` in one plan with all rows that run meanwhile.
    pub(crate) unsafe fn draws(
        self,
        rows: &[PlanRow],
        scratch: &mut Scratch,
    ) -> Result<Vec<Option<Drawn>>, KernelError> {
        // SAFETY: the caller's.
        let count = unsafe { self.hidden(rows, false, scratch) };
        let mut drawn = vec![None; rows.len()];
        let mut wishes =
            rows.iter().zip(&mut drawn).filter_map(|(row, to)| row.draw.as_ref().map(|d| (d, to)));
        let vocab = self.model.shape().vocab;
        let mut watch = Watch::start(self.times);
        for first in (0..count).step_by(HEAD_ROWS) {
            let many = HEAD_ROWS.min(count - first);
            let stride = self.head(first, many, scratch);
            watch.spent(Part::Products);
            for (logits, (draw, to)) in scratch.logits.chunks_exact(stride).take(many).zip(&mut wishes) {
                *to = Some(sampling::draw(self.level, &logits[..vocab], draw, &mut scratch.sampling)?);
            }
            watch.spent(Part::Draws);
        }
        Ok(drawn)
    }

    /// Runs `rows` and returns the logits after every token, `[row][token][vocab]`.
    ///
    /// # Safety
    /// As [`Pass::draws`].
    pub(crate) unsafe fn logits(self, rows: &[PlanRow], scratch: &mut Scratch) -> Vec<Vec<Vec<f32>>> {
        // SAFETY: the caller's.
        unsafe { self.hidden(rows, true, scratch) };
        let vocab = self.model.shape().vocab;
        let mut first = 0;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let mut of_row = Vec::with_capacity(row.tokens.len());
            for _ in 0..row.tokens.len() {
                self.head(first, 1, scratch);
                of_row.push(scratch.logits[..vocab].to_vec());
                first += 1;
            }
            all.push(of_row);
        }
        all
    }

    /// Logits of `rows` normed hidden rows from `first` on; returns their stride.
    fn head(&self, first: usize, rows: usize, scratch: &mut Scratch) -> usize {
        let stride = hidden_stride(self.model.shape());
        let head = &self.model.head;
        scratch.logits.grow(HEAD_ROWS * head.output_stride());
        head.multiply(
            &scratch.normed[first * stride..],
            stride,
            rows,
            None,
            &mut scratch.logits,
            Mode::Store,
        );
        head.output_stride()
    }

    /// Runs the layers; leaves in `scratch.normed` the final normed rows of every token (`all`) or of the last
    /// tokens of the rows that draw, in order, and returns how many.
    ///
    /// # Safety
    /// As [`Pass::draws`].
    unsafe fn hidden(&self, rows: &[PlanRow], all: bool, scratch: &mut Scratch) -> usize {
        let shape = self.model.shape();
        let stride = hidden_stride(shape);
        let mut watch = Watch::start(self.times);
        let mut count: usize = rows.iter().map(|r| r.tokens.len()).sum();
        scratch.hidden.grow(count * stride);
        scratch.normed.grow(count * stride);
        scratch.qkv.grow(count * padded(shape.qkv_rows()));
        scratch.attended.grow(count * padded(shape.heads * shape.head_dim));
        scratch.gate_up.grow(count * padded(2 * shape.ffn));
        scratch.gated.grow(count * padded(shape.ffn));

        scratch.spans.clear();
        let mut first = 0;
        for (row, planned) in rows.iter().enumerate() {
            let tokens = planned.tokens.len();
            scratch.spans.push(Span { row, first, tokens, start: planned.start as usize });
            let hidden = &mut scratch.hidden[first * stride..(first + tokens) * stride];
            for (&token, hidden) in planned.tokens.iter().zip(hidden.chunks_exact_mut(stride)) {
                self.model.embed(token, hidden);
            }
            first += tokens;
        }

        let eps = shape.rms_eps as f32;
        for (l, layer) in self.model.layers.iter().enumerate() {
            rms_norm(self.level, &scratch.hidden, &mut scratch.normed, stride, count, &layer.attn_norm, eps);
            watch.spent(Part::Elements);
            let bias = layer.qkv_bias.as_deref();
            layer.qkv.multiply(&scratch.normed, stride, count, bias, &mut scratch.qkv, Mode::Store);
            watch.spent(Part::Products);
            // SAFETY: the caller's.
            unsafe { self.turn_and_write(rows, l, layer, scratch) };
            if l + 1 == self.model.layers.len() && !all {
                count = keep_last(rows, stride, scratch);
                if count == 0 {
                    return 0;
                }
            }
            watch.spent(Part::Elements);
            // SAFETY: the caller's, and this layer's KV of all rows was just written.
            unsafe { self.attend(rows, l, scratch) };
            watch.spent(Part::Attention);
            let inner = padded(shape.heads * shape.head_dim);
            layer.o.multiply(&scratch.attended, inner, count, None, &mut scratch.hidden, Mode::Add);
            watch.spent(Part::Products);
            rms_norm(self.level, &scratch.hidden, &mut scratch.normed, stride, count, &layer.ffn_norm, eps);
            watch.spent(Part::Elements);
            layer.gate_up.multiply(&scratch.normed, stride, count, None, &mut scratch.gate_up, Mode::Store);
            watch.spent(Part::Products);
            let (wide, narrow) = (padded(2 * shape.ffn), padded(shape.ffn));
            swiglu(self.level, &scratch.gate_up, wide, &mut scratch.gated, narrow, count, shape.ffn);
            watch.spent(Part::Elements);
            layer.down.multiply(&scratch.gated, narrow, count, None, &mut scratch.hidden, Mode::Add);
            watch.spent(Part::Products);
        }
        rms_norm(self.level, &scratch.hidden, &mut scratch.normed, stride, count, &self.model.norm, eps);
        watch.spent(Part::Elements);
        count
    }

    /// Norms, rotates and scales q and k of every token, and writes k and v to the pool.
    ///
    /// # Safety
    /// As [`Pass::draws`].
    unsafe fn turn_and_write(&self, rows: &[PlanRow], l: usize, layer: &Layer, scratch: &mut Scratch) {
        let shape = self.model.shape();
        let hd = shape.head_dim;
        let (q_len, kv_len) = (shape.heads * hd, shape.kv_heads * hd);
        let eps = shape.rms_eps as f32;
        let (q_norm, k_norm) = match &layer.qk_norm {
            Some((q, k)) => (Some((q.as_slice(), eps)), Some((k.as_slice(), eps))),
            None => (None, None),
        };
        let scale = 1.0 / (hd as f32).sqrt();
        let block_tokens = self.kv.layout.block_tokens;
        let stride = padded(shape.qkv_rows());
        for span in &scratch.spans {
            let qkv = &mut scratch.qkv[span.first * stride..(span.first + span.tokens) * stride];
            for (i, qkv) in qkv.chunks_exact_mut(stride).enumerate() {
                let position = span.start + i;
                let (cos, sin) = self.model.angles(position);
                let (q, kv) = qkv.split_at_mut(q_len);
                turn_heads(self.level, q, HeadTurn { norm: q_norm, cos, sin, scale });
                let (k, v) = kv.split_at_mut(kv_len);
                turn_heads(self.level, k, HeadTurn { norm: k_norm, cos, sin, scale: 1.0 });
                let block = rows[span.row].blocks[position / block_tokens];
                // SAFETY: the plan's check: the block is reserved, and this row alone uses it.
                unsafe { self.kv.write(block, position % block_tokens, l, k, &v[..kv_len]) };
            }
        }
    }

    /// Attention of every span into `scratch.attended`, packed in span order.
    ///
    /// # Safety
    /// As [`Pass::draws`], and the layer's KV is written up to each span's end.
    unsafe fn attend(&self, rows: &[PlanRow], l: usize, scratch: &mut Scratch) {
        let shape = self.model.shape();
        let inner = shape.heads * shape.head_dim;
        let (queries_stride, out_stride) = (padded(shape.qkv_rows()), padded(inner));
        let mut parts = Vec::with_capacity(scratch.spans.len());
        let (mut to, mut fmas) = (0, 0);
        for span in &scratch.spans {
            let queries =
                &scratch.qkv[span.first * queries_stride..(span.first + span.tokens) * queries_stride];
            let out = &mut scratch.attended[to * out_stride..(to + span.tokens) * out_stride];
            to += span.tokens;
            let task = Attend {
                kv: self.kv,
                layer: l,
                blocks: &rows[span.row].blocks,
                start: span.start,
                tokens: span.tokens,
                heads: shape.heads,
                group: shape.heads / shape.kv_heads,
                queries: queries.as_ptr(),
                queries_stride,
                out: out.as_mut_ptr(),
                out_stride,
            };
            for skip in (0..span.tokens).step_by(PART_TOKENS) {
                // SAFETY: the part lies inside of the span.
                parts.push(unsafe { task.part(skip, PART_TOKENS.min(span.tokens - skip)) });
            }
            fmas += span.tokens * (2 * span.start + span.tokens) * inner;
        }
        if parts.len() == 1 || fmas < PARALLEL_FMAS || rayon::current_num_threads() == 1 {
            for part in parts {
                // SAFETY: the slices above, the plan's check, and the caller's promise.
                unsafe { part.run(self.level, &mut scratch.scores) };
            }
        } else {
            parts.into_par_iter().for_each_init(Aligned::default, |scores, part| {
                // SAFETY: as above; the parts write disjoint tokens of `attended`.
                unsafe { part.run(self.level, scores) };
            });
        }
    }
}

/// In the last layer only the tokens that draw go on after their KV is written: moves their residual rows
/// together and shortens the spans to them. Returns how many.
fn keep_last(rows: &[PlanRow], stride: usize, scratch: &mut Scratch) -> usize {
    let mut count = 0;
    for i in 0..scratch.spans.len() {
        let span = scratch.spans[i];
        if rows[span.row].draw.is_some() {
            let last = span.first + span.tokens - 1;
            scratch.hidden.copy_within(last * stride..(last + 1) * stride, count * stride);
            let start = span.start + span.tokens - 1;
            scratch.spans[count] = Span { row: span.row, first: last, tokens: 1, start };
            count += 1;
        }
    }
    scratch.spans.truncate(count);
    count
}
