//! Row-wise maths. Each function is written once and compiled for every level; sums run over sixteen lanes that are
//! added up in one fixed order.

#![expect(clippy::inline_always, reason = "a body has to be compiled into the function of each level")]

use super::level::Level;

const LANES: usize = 16;

/// Compiles a body for each level and calls the right one.
macro_rules! by_level {
    ($level:expr, $body:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the body is safe; only the instructions it is compiled to need the check")]
        {
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
            match $level {
                // SAFETY: `Level::available` gave this level, so the CPU has the instructions.
                Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                Level::Avx2 => unsafe { avx2($($arg),*) },
                Level::Portable => $body($($arg),*),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        { let _ = $level; $body($($arg),*) }
    }};
}
pub(super) use by_level;

/// Σ a·b.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for (i, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += x * y;
    }
    add_up(&lanes)
}

#[inline(always)]
fn add_up(lanes: &[f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut sums = *lanes;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// e^x to about 1 ulp of f32 for x ≤ 0 and moderate x > 0; 0 far below.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 in two parts keeps r exact.
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Taylor's series to r⁷/7!.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

/// x / √(mean(x²) + eps) · weight, one row.
pub fn rms_norm(level: Level, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    by_level!(level, rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]));
}

#[inline(always)]
fn swiglu_body(gate_up: &[f32], out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = g / (1.0 + exp(-g)) * u;
    }
}

/// silu(gate) · up, one row of `[gate; up]`.
pub fn swiglu(level: Level, gate_up: &[f32], out: &mut [f32]) {
    by_level!(level, swiglu_body(gate_up: &[f32], out: &mut [f32]));
}

/// Cosines and sines of rotary positions: `[position][head_dim / 2]`, as Hugging Face computes them.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Tables for positions `0..positions`.
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let angle = |i: usize| (i / half) as f64 * theta.powf(-((i % half) as f64) / half as f64);
        let all = 0..positions * half;
        let cos = all.clone().map(|i| angle(i).cos() as f32).collect();
        let sin = all.map(|i| angle(i).sin() as f32).collect();
        Self { cos, sin, half }
    }

    /// Rotates one head in place; element i is paired with i + head_dim / 2.
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        let at = position * self.half;
        let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
        let (low, high) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let wanted = f64::from(x).exp();
            assert!((f64::from(exp(x)) / wanted - 1.0).abs() < 3e-7, "{x}: {} {wanted}", exp(x));
        }
        assert!(exp(-1e9) < 1e-37 && exp(f32::MIN) >= 0.0);
    }

    #[test]
    fn levels_agree() {
        let x: Vec<f32> = (0..150).map(|i| ((i * 37 % 91) as f32 - 45.0) / 20.0).collect();
        let (mut plain, mut other) = (vec![0.0; 75], vec![0.0; 75]);
        swiglu(Level::Portable, &x, &mut plain);
        for level in Level::available() {
            swiglu(level, &x, &mut other);
            assert!(plain.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
