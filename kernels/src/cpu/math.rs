//! The element-wise parts of the forward pass, and the exponentials under softmax and `SwiGLU`.
#![allow(unsafe_code)]

use super::level::{Kernel, Level};
use super::simd::Simd;

/// Weights of a softmax are summed in runs of this many, then the runs in order.
pub(crate) const RUN: usize = 64;

const LOWEST: f32 = -87.0;
const HIGHEST: f32 = 88.0;

/// `e^x` to about 2 ulp; 0 below -87, `e^88` above 88. Range reduction by ln 2 in two parts and a polynomial of
/// degree 6 (the coefficients of Cephes' `expf`).
///
/// # Safety
/// The CPU has `S`'s instructions.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let lowest = S::splat(LOWEST);
        let c = S::min(S::max(x, lowest), S::splat(HIGHEST));
        let n = S::round(S::mul(c, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), c);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(coefficient));
        }
        let y = S::fma(p, S::mul(r, r), S::add(r, S::splat(1.0)));
        S::zero_below(x, lowest, S::mul(y, S::exp2_whole(n)))
    }
}

/// Sum of squares in a fixed order: vectors first, then what is left over.
///
/// # Safety
/// The CPU has `S`'s instructions.
#[inline(always)]
pub(crate) unsafe fn sum_squares<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: each chunk has `LANES` elements.
    unsafe {
        let chunks = x.chunks_exact(S::LANES);
        let rest = chunks.remainder();
        let mut squares = S::splat(0.0);
        for chunk in chunks {
            let v = S::load(chunk.as_ptr());
            squares = S::fma(v, v, squares);
        }
        rest.iter().fold(S::sum(squares), |sum, &x| sum + x * x)
    }
}

#[inline(always)]
pub(crate) fn inverse_rms(squares: f32, width: usize, eps: f32) -> f32 {
    1.0 / (squares / width as f32 + eps).sqrt()
}

/// `to = from / rms(from) · weight`, row by row.
pub(crate) fn rms_norm(
    level: Level,
    from: &[f32],
    to: &mut [f32],
    stride: usize,
    rows: usize,
    weight: &[f32],
    eps: f32,
) {
    struct Rows<'a>(&'a [f32], &'a mut [f32], usize, usize, &'a [f32], f32);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(from, to, stride, rows, weight, eps) = self;
            for (from, to) in from.chunks_exact(stride).zip(to.chunks_exact_mut(stride)).take(rows) {
                // SAFETY: the level's.
                let squares = unsafe { sum_squares::<S>(&from[..weight.len()]) };
                let scale = inverse_rms(squares, weight.len(), eps);
                for ((to, &x), &w) in to.iter_mut().zip(from).zip(weight) {
                    *to = x * scale * w;
                }
            }
        }
    }
    // SAFETY: works on slices.
    unsafe { level.run(Rows(from, to, stride, rows, weight, eps)) }
}

/// What happens to a head of q or k before attention.
#[derive(Clone, Copy)]
pub(crate) struct HeadTurn<'a> {
    /// `RMSNorm` weight over the head, and epsilon.
    pub(crate) norm: Option<(&'a [f32], f32)>,
    /// Cosines of the position's angles, half a head.
    pub(crate) cos: &'a [f32],
    /// Sines.
    pub(crate) sin: &'a [f32],
    /// Factor put on at the end (the attention scale, on q).
    pub(crate) scale: f32,
}

/// Normalises (where asked), rotates and scales each head of `heads` in place: the pair of element `i` is
/// `i + head_dim / 2` (Hugging Face's `rotate_half`).
pub(crate) fn turn_heads(level: Level, heads: &mut [f32], turn: HeadTurn<'_>) {
    struct Turn<'a>(&'a mut [f32], HeadTurn<'a>);
    impl Kernel for Turn<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(heads, turn) = self;
            let half = turn.cos.len();
            for head in heads.chunks_exact_mut(2 * half) {
                if let Some((weight, eps)) = turn.norm {
                    // SAFETY: the level's.
                    let squares = unsafe { sum_squares::<S>(head) };
                    let scale = inverse_rms(squares, 2 * half, eps);
                    for (x, &w) in head.iter_mut().zip(weight) {
                        *x *= scale * w;
                    }
                }
                let (first, second) = head.split_at_mut(half);
                for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(turn.cos).zip(turn.sin) {
                    let (x, y) = (*a, *b);
                    *a = (x * cos - y * sin) * turn.scale;
                    *b = (y * cos + x * sin) * turn.scale;
                }
            }
        }
    }
    // SAFETY: works on slices.
    unsafe { level.run(Turn(heads, turn)) }
}

/// `to = silu(gate) · up` for `rows` rows; a row of `gate_up` holds `ffn` gates, then `ffn` ups.
pub(crate) fn swiglu(
    level: Level,
    gate_up: &[f32],
    gate_up_stride: usize,
    to: &mut [f32],
    to_stride: usize,
    rows: usize,
    ffn: usize,
) {
    struct Rows<'a>(&'a [f32], usize, &'a mut [f32], usize, usize, usize);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(gate_up, gate_up_stride, to, to_stride, rows, ffn) = self;
            let rows = gate_up.chunks_exact(gate_up_stride).zip(to.chunks_exact_mut(to_stride)).take(rows);
            for (gate_up, to) in rows {
                let (gate, up) = gate_up[..2 * ffn].split_at(ffn);
                let to = &mut to[..ffn];
                let whole = ffn - ffn % S::LANES;
                // SAFETY: `i + LANES <= ffn`; the left-over elements go through vectors of their own.
                unsafe {
                    for i in (0..whole).step_by(S::LANES) {
                        let v = gated::<S>(S::load(gate.as_ptr().add(i)), S::load(up.as_ptr().add(i)));
                        S::store(to.as_mut_ptr().add(i), v);
                    }
                    if whole < ffn {
                        let (mut g, mut u) = ([0.0; 16], [0.0; 16]);
                        g[..ffn - whole].copy_from_slice(&gate[whole..]);
                        u[..ffn - whole].copy_from_slice(&up[whole..]);
                        let v = gated::<S>(S::load(g.as_ptr()), S::load(u.as_ptr()));
                        S::store(g.as_mut_ptr(), v);
                        to[whole..].copy_from_slice(&g[..ffn - whole]);
                    }
                }
            }
        }
    }
    // SAFETY: works on slices.
    unsafe { level.run(Rows(gate_up, gate_up_stride, to, to_stride, rows, ffn)) }
}

/// SAFETY: the CPU has `S`'s instructions.
#[inline(always)]
unsafe fn gated<S: Simd>(gate: S::V, up: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), gate));
        S::mul(S::div(gate, S::add(S::splat(1.0), e)), up)
    }
}

/// Unnormalised softmax: `weights[i] = e^((logits[i] - max) / temperature)`, and the sum of each [`RUN`] of them.
/// Returns the largest logit, or `None` when a logit is not finite.
pub(crate) fn softmax_weights(
    level: Level,
    logits: &[f32],
    temperature: f32,
    weights: &mut Vec<f32>,
    runs: &mut Vec<f32>,
) -> Option<f32> {
    struct Row<'a>(&'a [f32], f32, &'a mut Vec<f32>, &'a mut Vec<f32>);
    impl Kernel for Row<'_> {
        type Output = Option<f32>;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Option<f32> {
            let Self(logits, temperature, weights, runs) = self;
            // SAFETY: loads and stores stay in `padded` and in `weights`, both whole numbers of RUNs.
            unsafe {
                weights.clear();
                weights.extend_from_slice(logits);
                weights.resize(logits.len().next_multiple_of(RUN), f32::NEG_INFINITY);
                runs.clear();
                let mut largest = S::splat(f32::NEG_INFINITY);
                for run in weights.chunks_exact(S::LANES) {
                    largest = S::max(largest, S::load(run.as_ptr()));
                }
                let largest = S::largest(largest);
                let strays = logits.iter().fold(0u32, |bad, x| bad + u32::from(!x.is_finite()));
                if strays > 0 {
                    return None;
                }
                let (shift, scale) = (S::splat(largest), S::splat(1.0 / temperature));
                for run in weights.chunks_exact_mut(RUN) {
                    let mut sum = S::splat(0.0);
                    for part in run.chunks_exact_mut(S::LANES) {
                        let e = exp::<S>(S::mul(S::sub(S::load(part.as_ptr()), shift), scale));
                        S::store(part.as_mut_ptr(), e);
                        sum = S::add(sum, e);
                    }
                    runs.push(S::sum(sum));
                }
                Some(largest)
            }
        }
    }
    // SAFETY: works on slices.
    unsafe { level.run(Row(logits, temperature, weights, runs)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials_and_runs_their_sums() {
        let logits: Vec<f32> =
            (0..1000u32).map(|i| i.wrapping_mul(2_654_435_761) as f32 / 1e8 - 20.0).collect();
        for level in Level::available() {
            for temperature in [0.3, 1.0, 2.0] {
                let (mut weights, mut runs) = (Vec::new(), Vec::new());
                let largest = softmax_weights(level, &logits, temperature, &mut weights, &mut runs).unwrap();
                assert_eq!(largest.to_bits(), logits.iter().copied().fold(f32::MIN, f32::max).to_bits());
                for (&w, &l) in weights.iter().zip(&logits) {
                    let wanted = (f64::from(l - largest) / f64::from(temperature)).exp();
                    assert!((f64::from(w) - wanted).abs() <= 1e-5 * wanted + 1e-37, "{level:?} {w} {wanted}");
                }
                assert_eq!((runs.len(), weights.len()), (16, 1024));
                let (a, b) = (weights.iter().sum::<f32>(), runs.iter().sum::<f32>());
                assert!((a - b).abs() < 1e-4 * a);
            }
        }
    }

    #[test]
    fn strays_among_logits_are_seen() {
        for stray in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![0.0; 70];
            logits[69] = stray;
            for level in Level::available() {
                assert_eq!(softmax_weights(level, &logits, 1.0, &mut Vec::new(), &mut Vec::new()), None);
            }
        }
    }

    #[test]
    fn swiglu_of_extremes_stays_finite() {
        let gate_up = [-200.0, -1.0, 0.0, 200.0, 2.0, 2.0, 2.0, 2.0];
        for level in Level::available() {
            let mut to = [0.0; 4];
            swiglu(level, &gate_up, 8, &mut to, 4, 1, 4);
            let wanted = [0.0, -2.0 / (1.0 + 1f32.exp()), 0.0, 400.0];
            assert!(to.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{level:?} {to:?}");
        }
    }
}
