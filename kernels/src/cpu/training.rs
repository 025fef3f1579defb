//! The element-wise parts of a training step, each in one pass over its rows: forward with what backward asks for, and
//! backward. On the thread that calls; rows come one after the other, so that bits depend on nothing else.
#![allow(unsafe_code)]

use super::level::{Kernel, Level};
use super::math::{self, HeadTurn, exp, inverse_rms, sum_squares};
use super::simd::Simd;

/// `to = from / rms(from) · weight` of rows as wide as `weight`; `inverse` gets 1 / rms of each row.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn rms_norm(level: Level, from: &[f32], weight: &[f32], eps: f32, to: &mut [f32], inverse: &mut [f32]) {
    struct Rows<'a>(&'a [f32], &'a [f32], f32, &'a mut [f32], &'a mut [f32]);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(from, weight, eps, to, inverse) = self;
            let width = weight.len();
            let rows = from.chunks_exact(width).zip(to.chunks_exact_mut(width)).zip(inverse);
            for ((from, to), inverse) in rows {
                // SAFETY: the level's.
                let squares = unsafe { sum_squares::<S>(from) };
                let scale = inverse_rms(squares, width, eps);
                *inverse = scale;
                for ((to, &x), &w) in to.iter_mut().zip(from).zip(weight) {
                    *to = x * scale * w;
                }
            }
        }
    }
    let elements = inverse.len() * weight.len();
    assert_eq!((from.len(), to.len()), (elements, elements), "rows of {} floats", weight.len());
    // SAFETY: works on slices.
    unsafe { level.run(Rows(from, weight, eps, to, inverse)) }
}

/// Gradients of [`rms_norm`], given `by_to`: adds to `by_from`, and to `by_weight`. With g = `by_to · weight` and
/// r = 1 / rms, `by_from` is r·g − x·r³·(g·x) / width.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn rms_norm_backward(
    level: Level,
    from: &[f32],
    weight: &[f32],
    inverse: &[f32],
    by_to: &[f32],
    by_from: &mut [f32],
    by_weight: &mut [f32],
) {
    struct Rows<'a>(&'a [f32], &'a [f32], &'a [f32], &'a [f32], &'a mut [f32], &'a mut [f32]);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(from, weight, inverse, by_to, by_from, by_weight) = self;
            let width = weight.len();
            let rows = from.chunks_exact(width).zip(by_to.chunks_exact(width));
            for (((x, by), by_x), &r) in rows.zip(by_from.chunks_exact_mut(width)).zip(inverse) {
                // SAFETY: the level's; three slices of one length.
                let along = unsafe { dot3::<S>(x, by, weight) };
                let back = r * r * r * along / width as f32;
                let elements = by_x.iter_mut().zip(&mut *by_weight).zip(x).zip(by).zip(weight);
                for ((((by_x, by_w), &x), &by), &w) in elements {
                    *by_x += r * by * w - x * back;
                    *by_w += r * by * x;
                }
            }
        }
    }
    let elements = inverse.len() * weight.len();
    let lengths = (from.len(), by_to.len(), by_from.len(), by_weight.len());
    assert_eq!(lengths, (elements, elements, elements, weight.len()), "rows of {} floats", weight.len());
    // SAFETY: works on slices.
    unsafe { level.run(Rows(from, weight, inverse, by_to, by_from, by_weight)) }
}

/// Σ a·b·c in a fixed order: vectors first, then what is left over.
///
/// # Safety
/// The CPU has `S`'s instructions, and the slices are of one length.
#[inline(always)]
unsafe fn dot3<S: Simd>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let whole = a.len() - a.len() % S::LANES;
    // SAFETY: `i + LANES` is at most each slice's length.
    let sum = unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let [a, b, c] = [a, b, c].map(|of| S::load(of.as_ptr().add(i)));
            sum = S::fma(S::mul(a, b), c, sum);
        }
        S::sum(sum)
    };
    (whole..a.len()).fold(sum, |sum, i| sum + a[i] * b[i] * c[i])
}

/// Rotates the first `width` elements of each row of `stride`, head by head, by the row's angles: `cos` and `sin` hold
/// half a head for each. The pair of element `i` is `i + head_dim / 2` (Hugging Face's `rotate_half`). Backward is the
/// same, `back`wards.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn rotate(
    level: Level,
    rows: &mut [f32],
    stride: usize,
    width: usize,
    (cos, sin): (&[f32], &[f32]),
    back: bool,
) {
    let count = rows.len() / stride;
    let half = cos.len() / count.max(1);
    assert_eq!((count * stride, cos.len(), sin.len()), (rows.len(), count * half, count * half));
    let mut turned = vec![0.0; half];
    let angles = cos.chunks(half.max(1)).zip(sin.chunks(half.max(1)));
    for (row, (cos, sin)) in rows.chunks_exact_mut(stride).zip(angles) {
        let sign = if back { -1.0 } else { 1.0 };
        turned.iter_mut().zip(sin).for_each(|(to, sin)| *to = sign * sin);
        math::turn_heads(level, &mut row[..width], HeadTurn { norm: None, cos, sin: &turned, scale: 1.0 });
    }
}

/// `to = silu(gate) · up`; a row of `gate_up` holds `ffn` gates, then `ffn` ups.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn swiglu(level: Level, gate_up: &[f32], ffn: usize, to: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * to.len(), "two for each");
    math::swiglu(level, gate_up, 2 * ffn, to, ffn, to.len() / ffn, ffn);
}

/// Gradients of [`swiglu`], in place: `by_to` becomes what [`swiglu`] gave, and `gate_up` the gradient with respect to
/// itself.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn swiglu_backward(level: Level, gate_up: &mut [f32], ffn: usize, by_to: &mut [f32]) {
    struct Rows<'a>(&'a mut [f32], usize, &'a mut [f32]);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(gate_up, ffn, by_to) = self;
            let whole = ffn - ffn % S::LANES;
            for (gate_up, by) in gate_up.chunks_exact_mut(2 * ffn).zip(by_to.chunks_exact_mut(ffn)) {
                let (gate, up) = gate_up.split_at_mut(ffn);
                // SAFETY: `i + LANES <= ffn`; the left-over elements go through vectors of their own.
                unsafe {
                    for i in (0..whole).step_by(S::LANES) {
                        let at = [&mut *gate, &mut *up, &mut *by].map(|of| of.as_mut_ptr().add(i));
                        ungated::<S>(at);
                    }
                    if whole < ffn {
                        let mut padded = [[0.0f32; 16]; 3];
                        let parts = [&mut gate[whole..], &mut up[whole..], &mut by[whole..]];
                        for (padded, part) in padded.iter_mut().zip(&parts) {
                            padded[..part.len()].copy_from_slice(part);
                        }
                        ungated::<S>(padded.each_mut().map(|of| of.as_mut_ptr()));
                        for (padded, part) in padded.iter().zip(parts) {
                            part.copy_from_slice(&padded[..part.len()]);
                        }
                    }
                }
            }
        }
    }
    assert_eq!(gate_up.len(), 2 * by_to.len(), "two for each");
    // SAFETY: works on slices.
    unsafe { level.run(Rows(gate_up, ffn, by_to)) }
}

/// Gate, up and what comes of them, of which the last is given as a gradient: see [`swiglu_backward`].
///
/// # Safety
/// The CPU has `S`'s instructions; `LANES` elements can be read and written at each.
#[inline(always)]
unsafe fn ungated<S: Simd>([gate, up, by]: [*mut f32; 3]) {
    // SAFETY: the caller's.
    unsafe {
        let (g, u, b) = (S::load(gate), S::load(up), S::load(by));
        let one = S::splat(1.0);
        let sigmoid = S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), g))));
        let silu = S::mul(g, sigmoid);
        // d silu / d gate = σ·(1 + gate·(1 − σ)) = σ + silu·(1 − σ).
        let slope = S::fma(silu, S::sub(one, sigmoid), sigmoid);
        S::store(gate, S::mul(S::mul(b, u), slope));
        S::store(up, S::mul(b, silu));
        S::store(by, S::mul(silu, u));
    }
}

/// Softmax of rows of `vocab` logits in place, and of each the log-prob of its target and the entropy, in nats.
///
/// # Panics
/// When the lengths do not fit each other, or a target is not below `vocab`.
pub fn softmax(
    level: Level,
    logits: &mut [f32],
    vocab: usize,
    targets: &[i64],
    logp: &mut [f32],
    entropy: &mut [f32],
) {
    struct Rows<'a>(&'a mut [f32], usize, &'a [i64], &'a mut [f32], &'a mut [f32]);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(logits, vocab, targets, logp, entropy) = self;
            let told = targets.iter().zip(logp).zip(entropy);
            for (row, ((&target, logp), entropy)) in logits.chunks_exact_mut(vocab).zip(told) {
                let drawn = row[target as usize];
                // SAFETY: the level's.
                let (largest, sum, weighted) = unsafe { exponentials::<S>(row) };
                let scale = (1.0 / sum) as f32;
                for x in &mut *row {
                    *x *= scale;
                }
                *logp = (f64::from(drawn - largest) - sum.ln()) as f32;
                *entropy = (sum.ln() - weighted / sum) as f32;
            }
        }
    }
    let rows = targets.len();
    assert_eq!((logits.len(), logp.len(), entropy.len()), (rows * vocab, rows, rows));
    // SAFETY: works on slices.
    unsafe { level.run(Rows(logits, vocab, targets, logp, entropy)) }
}

/// Puts e^(x − largest) in the place of each x, and gives the largest, the exponentials' sum, and that of
/// (x − largest)·e^(x − largest). Runs of [`math::RUN`] are summed first, then the runs.
///
/// # Safety
/// The CPU has `S`'s instructions.
#[inline(always)]
unsafe fn exponentials<S: Simd>(row: &mut [f32]) -> (f32, f64, f64) {
    let largest = row.iter().fold(f32::NEG_INFINITY, |largest, x| if *x > largest { *x } else { largest });
    let (mut sum, mut weighted) = (0.0, 0.0);
    // SAFETY: loads and stores stay in chunks of `LANES` elements.
    unsafe {
        let shift = S::splat(largest);
        for run in row.chunks_mut(math::RUN) {
            let (mut sums, mut weights) = (S::splat(0.0), S::splat(0.0));
            let mut vectors = run.chunks_exact_mut(S::LANES);
            for vector in &mut vectors {
                let x = S::sub(S::load(vector.as_ptr()), shift);
                let e = exp::<S>(x);
                S::store(vector.as_mut_ptr(), e);
                (sums, weights) = (S::add(sums, e), S::fma(x, e, weights));
            }
            (sum, weighted) = (sum + f64::from(S::sum(sums)), weighted + f64::from(S::sum(weights)));
            for x in vectors.into_remainder() {
                let below = *x - largest;
                let mut lanes = [0.0; 16];
                S::store(lanes.as_mut_ptr(), exp::<S>(S::splat(below)));
                *x = lanes[0];
                (sum, weighted) = (sum + f64::from(*x), weighted + f64::from(below * *x));
            }
        }
    }
    // The exponential of what is no number is 0, its product with it is none.
    (largest, if weighted.is_nan() { f64::NAN } else { sum }, weighted)
}

/// From the probabilities of [`softmax`] the gradient of Σ `slope` · log-prob with respect to the logits, in place:
/// `slope` at the target, less `slope` · probability anywhere.
///
/// # Panics
/// When the lengths do not fit each other, or a target is not below `vocab`.
pub fn softmax_backward(
    level: Level,
    probabilities: &mut [f32],
    vocab: usize,
    targets: &[i64],
    slope: &[f32],
) {
    struct Rows<'a>(&'a mut [f32], usize, &'a [i64], &'a [f32]);
    impl Kernel for Rows<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let Self(probabilities, vocab, targets, slopes) = self;
            for (row, (&target, slope)) in
                probabilities.chunks_exact_mut(vocab).zip(targets.iter().zip(slopes))
            {
                for p in &mut *row {
                    *p *= -slope;
                }
                row[target as usize] += slope;
            }
        }
    }
    assert_eq!((probabilities.len(), slope.len()), (targets.len() * vocab, targets.len()));
    // SAFETY: works on slices.
    unsafe { level.run(Rows(probabilities, vocab, targets, slope)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of no pattern, in -2..2.
    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let scattered = |i: u32| (i ^ seed).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(40_503);
        (0..n as u32).map(|i| f64::from(scattered(i + 1)) as f32 / (1u64 << 30) as f32 - 2.0).collect()
    }

    /// Σ outputs · by, and how it changes with input `i`, by central differences in f64.
    fn slopes(f: impl Fn(&[f64]) -> f64, at: &[f32]) -> Vec<f64> {
        let at: Vec<f64> = at.iter().map(|x| f64::from(*x)).collect();
        let moved = |i: usize, by: f64| {
            let mut at = at.clone();
            at[i] += by;
            f(&at)
        };
        (0..at.len()).map(|i| (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5).collect()
    }

    fn close(level: Level, found: &[f32], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
            assert!((f64::from(*f) - w).abs() < 2e-5 * (1.0 + w.abs()), "{level:?} {i}: {f} {w}");
        }
    }

    #[test]
    fn a_norms_gradients_are_its_slopes() {
        for level in Level::available() {
            for (rows, width) in [(0, 5), (1, 1), (3, 7), (2, 16), (3, 37)] {
                let (x, weight, by) = (numbers(rows * width, 1), numbers(width, 2), numbers(rows * width, 3));
                let normed = |x: &[f64], weight: &[f64]| -> Vec<f64> {
                    let row = |x: &[f64]| {
                        let rms = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-3).sqrt();
                        x.iter().zip(weight).map(|(x, w)| x / rms * w).collect::<Vec<f64>>()
                    };
                    x.chunks(width).flat_map(row).collect()
                };
                let whole = |out: Vec<f64>| out.iter().zip(&by).map(|(o, b)| o * f64::from(*b)).sum::<f64>();
                let exact = |of: &[f32]| of.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
                let (mut to, mut inverse) = (vec![9.0; rows * width], vec![9.0; rows]);
                rms_norm(level, &x, &weight, 1e-3, &mut to, &mut inverse);
                close(level, &to, &normed(&exact(&x), &exact(&weight)));
                // What is there already is added to.
                let (mut by_x, mut by_weight) = (vec![1.0; rows * width], vec![2.0; width]);
                rms_norm_backward(level, &x, &weight, &inverse, &by, &mut by_x, &mut by_weight);
                let plus = |n: f64, of: Vec<f64>| of.into_iter().map(|x| x + n).collect::<Vec<f64>>();
                close(level, &by_x, &plus(1.0, slopes(|x| whole(normed(x, &exact(&weight))), &x)));
                close(level, &by_weight, &plus(2.0, slopes(|w| whole(normed(&exact(&x), w)), &weight)));
            }
        }
    }

    #[test]
    fn swiglus_gradients_are_its_slopes() {
        for level in Level::available() {
            for (rows, ffn) in [(0, 3), (1, 1), (2, 16), (3, 21)] {
                let (gate_up, by) = (numbers(2 * rows * ffn, 4), numbers(rows * ffn, 5));
                let gated = |gate_up: &[f64]| -> Vec<f64> {
                    let row = |row: &[f64]| {
                        let (gate, up) = row.split_at(ffn);
                        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect::<Vec<f64>>()
                    };
                    gate_up.chunks(2 * ffn).flat_map(row).collect()
                };
                let whole = |x: &[f64]| gated(x).iter().zip(&by).map(|(o, b)| o * f64::from(*b)).sum();
                let (mut to, mut again, mut by_both) = (vec![9.0; rows * ffn], by.clone(), gate_up.clone());
                swiglu(level, &gate_up, ffn, &mut to);
                swiglu_backward(level, &mut by_both, ffn, &mut again);
                close(level, &to, &gated(&gate_up.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>()));
                close(level, &again, &to.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
                close(level, &by_both, &slopes(whole, &gate_up));
            }
        }
    }

    #[test]
    fn a_softmaxs_log_prob_and_entropy_and_the_slope_of_its_log_prob() {
        for level in Level::available() {
            for (rows, vocab) in [(0, 3), (1, 1), (2, 64), (3, 150)] {
                let logits: Vec<f32> = numbers(rows * vocab, 7).iter().map(|x| x * 4.0).collect();
                let targets: Vec<i64> = (0..rows).map(|r| (r * 77 % vocab) as i64).collect();
                let slope = numbers(rows, 8);
                let mut p = logits.clone();
                let (mut logp, mut entropy) = (vec![9.0; rows], vec![9.0; rows]);
                softmax(level, &mut p, vocab, &targets, &mut logp, &mut entropy);
                let of_row = |row: &[f64], target: i64| {
                    let largest = row.iter().copied().fold(f64::MIN, f64::max);
                    row[target as usize] - largest - row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
                };
                let whole = |at: &[f64]| {
                    let rows = at.chunks(vocab).zip(&targets).zip(&slope);
                    rows.map(|((row, target), slope)| f64::from(*slope) * of_row(row, *target)).sum()
                };
                let exact: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
                let all = |row: &[f64]| (0..vocab as i64).map(|t| of_row(row, t)).collect::<Vec<f64>>();
                let logs: Vec<f64> = exact.chunks(vocab).flat_map(all).collect();
                let wanted: Vec<f64> = (0..rows).map(|r| logs[r * vocab + targets[r] as usize]).collect();
                close(level, &logp, &wanted);
                close(level, &p, &logs.iter().map(|l| l.exp()).collect::<Vec<f64>>());
                let of = |logs: &[f64]| -logs.iter().map(|l| l * l.exp()).sum::<f64>();
                close(level, &entropy, &logs.chunks(vocab).map(of).collect::<Vec<f64>>());
                softmax_backward(level, &mut p, vocab, &targets, &slope);
                close(level, &p, &slopes(whole, &logits));
            }
            // Far below the others, and what is no number stays so.
            let (mut p, mut logp, mut entropy) = ([0.0, -200.0, 0.0, f32::NAN], [0.0; 2], [0.0; 2]);
            softmax(level, &mut p, 2, &[1, 0], &mut logp, &mut entropy);
            assert_eq!((p[0], p[1], logp[0], entropy[0]), (1.0, 0.0, -200.0, 0.0), "{level:?}");
            assert!(logp[1].is_nan() && entropy[1].is_nan(), "{level:?} {logp:?}");
        }
    }

    #[test]
    fn a_rotation_and_back_is_none() {
        for level in Level::available() {
            // Two rows: two heads of four, and three elements that stay.
            let before = numbers(22, 6);
            let angles = [0.3f32, 1.1, 2.0, -0.4];
            let (cos, sin) = (angles.map(f32::cos), angles.map(f32::sin));
            let mut rows = before.clone();
            rotate(level, &mut rows, 11, 8, (&cos, &sin), false);
            let expected = before[11] * cos[2] - before[13] * sin[2];
            assert!((rows[11] - expected).abs() < 1e-6 && rows[8..11] == before[8..11], "{level:?}");
            rotate(level, &mut rows, 11, 8, (&cos, &sin), true);
            close(level, &rows, &before.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
        }
    }
}
