//! out[m, n] = a[m, k] · w[n, k]ᵀ with `w` packed once a version.
//!
//! Every output element is one chain of fused multiply-adds over k from 0 upwards, whatever m is and wherever the
//! row stands in the batch: that is what makes a row's bits independent of its neighbours.

use super::level::Level;

/// Columns of a panel: two AVX-512 registers.
pub const PANEL: usize = 32;
/// Rows of a register tile.
const TILE: usize = 8;

/// A weight matrix in panels of [`PANEL`] output columns: `[panel][k][column]`, zero-padded.
#[derive(Debug, Clone)]
pub struct Packed {
    data: Vec<f32>,
    n: usize,
    k: usize,
}

impl Packed {
    /// Packs `w[n, k]`, whose elements `at(row * k + column)` gives.
    pub fn new(n: usize, k: usize, at: impl Fn(usize) -> f32) -> Self {
        let panels = n.div_ceil(PANEL);
        let mut data = vec![0.0; panels * k * PANEL];
        for row in 0..n {
            let (panel, column) = (row / PANEL, row % PANEL);
            for i in 0..k {
                data[(panel * k + i) * PANEL + column] = at(row * k + i);
            }
        }
        Self { data, n, k }
    }

    /// Output columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes of the packed copy.
    pub fn bytes(&self) -> u64 {
        (self.data.len() * size_of::<f32>()) as u64
    }

    fn panel(&self, panel: usize) -> &[f32] {
        &self.data[panel * self.k * PANEL..(panel + 1) * self.k * PANEL]
    }
}

/// out[m, n] = a[m, k] · wᵀ, on the calling thread.
pub fn gemm(level: Level, a: &[f32], w: &Packed, out: &mut [f32]) {
    let (n, k) = (w.n, w.k);
    let rows = out.len() / n;
    debug_assert_eq!(a.len(), rows * k);
    let mut tile = [[0.0f32; PANEL]; TILE];
    for panel in 0..n.div_ceil(PANEL) {
        let columns = PANEL.min(n - panel * PANEL);
        let weights = w.panel(panel);
        for first in (0..rows).step_by(TILE) {
            let m = TILE.min(rows - first);
            run_tile(level, m, &a[first * k..(first + m) * k], k, weights, &mut tile);
            for (r, row) in tile[..m].iter().enumerate() {
                let at = (first + r) * n + panel * PANEL;
                out[at..at + columns].copy_from_slice(&row[..columns]);
            }
        }
    }
}

fn run_tile(level: Level, m: usize, a: &[f32], k: usize, w: &[f32], tile: &mut [[f32; PANEL]; TILE]) {
    match level {
        Level::Portable => portable(m, a, k, w, tile),
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "vector instructions behind a run-time check")]
        // SAFETY: `Level::available` gave this level, so the CPU has the instructions; `a` holds m·k and `w` k·PANEL
        // elements (asserted in the callee).
        Level::Avx2 => unsafe { x86::tile_avx2(m, a, k, w, tile) },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "vector instructions behind a run-time check")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::tile_avx512(m, a, k, w, tile) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable(m, a, k, w, tile),
    }
}

fn portable(m: usize, a: &[f32], k: usize, w: &[f32], tile: &mut [[f32; PANEL]; TILE]) {
    for (r, row) in tile[..m].iter_mut().enumerate() {
        *row = [0.0; PANEL];
        for (x, weights) in a[r * k..(r + 1) * k].iter().zip(w.chunks_exact(PANEL)) {
            for (sum, weight) in row.iter_mut().zip(weights) {
                *sum += x * weight;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector intrinsics")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{PANEL, TILE};

    /// # Safety
    /// The CPU must have AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn tile_avx512(m: usize, a: &[f32], k: usize, w: &[f32], tile: &mut [[f32; PANEL]; TILE]) {
        assert!(a.len() >= m * k && w.len() >= k * PANEL && m <= TILE);
        // SAFETY: bounds are asserted above; the instructions are this function's precondition.
        unsafe {
            match m {
                1 => rows_avx512::<1>(a, k, w, tile),
                2 => rows_avx512::<2>(a, k, w, tile),
                3 => rows_avx512::<3>(a, k, w, tile),
                4 => rows_avx512::<4>(a, k, w, tile),
                5 => rows_avx512::<5>(a, k, w, tile),
                6 => rows_avx512::<6>(a, k, w, tile),
                7 => rows_avx512::<7>(a, k, w, tile),
                _ => rows_avx512::<8>(a, k, w, tile),
            }
        }
    }

    /// # Safety
    /// AVX-512 F; `a` holds M·k elements, `w` k·PANEL.
    #[target_feature(enable = "avx512f")]
    unsafe fn rows_avx512<const M: usize>(a: &[f32], k: usize, w: &[f32], tile: &mut [[f32; PANEL]; TILE]) {
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for i in 0..k {
            // SAFETY: i < k, and `w` holds k rows of PANEL = 32 elements.
            let (w0, w1) = unsafe {
                let p = w.as_ptr().add(i * PANEL);
                (_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)))
            };
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: r < M and i < k.
                let x = _mm512_set1_ps(unsafe { *a.get_unchecked(r * k + i) });
                sum[0] = _mm512_fmadd_ps(x, w0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, w1, sum[1]);
            }
        }
        for (row, sum) in tile.iter_mut().zip(&sums) {
            // SAFETY: a row holds 32 elements.
            unsafe {
                _mm512_storeu_ps(row.as_mut_ptr(), sum[0]);
                _mm512_storeu_ps(row.as_mut_ptr().add(16), sum[1]);
            }
        }
    }

    /// # Safety
    /// The CPU must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn tile_avx2(m: usize, a: &[f32], k: usize, w: &[f32], tile: &mut [[f32; PANEL]; TILE]) {
        assert!(a.len() >= m * k && w.len() >= k * PANEL && m <= TILE);
        // Two rows by four registers at a time.
        for r in (0..m).step_by(2) {
            // SAFETY: bounds are asserted above; the instructions are this function's precondition.
            unsafe {
                if r + 1 < m {
                    rows_avx2::<2>(&a[r * k..], k, w, &mut tile[r..]);
                } else {
                    rows_avx2::<1>(&a[r * k..], k, w, &mut tile[r..]);
                }
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA; `a` holds M·k elements, `w` k·PANEL, `tile` M rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn rows_avx2<const M: usize>(a: &[f32], k: usize, w: &[f32], tile: &mut [[f32; PANEL]]) {
        let mut sums = [[_mm256_setzero_ps(); 4]; M];
        for i in 0..k {
            for j in 0..4 {
                // SAFETY: i < k, j < 4, and `w` holds k rows of 32 elements.
                let weights = unsafe { _mm256_loadu_ps(w.as_ptr().add(i * PANEL + 8 * j)) };
                for (r, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: r < M and i < k.
                    let x = _mm256_set1_ps(unsafe { *a.get_unchecked(r * k + i) });
                    sum[j] = _mm256_fmadd_ps(x, weights, sum[j]);
                }
            }
        }
        for (row, sum) in tile.iter_mut().zip(&sums) {
            for (j, part) in sum.iter().enumerate() {
                // SAFETY: a row holds 32 elements.
                unsafe { _mm256_storeu_ps(row.as_mut_ptr().add(8 * j), *part) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{RngKey, Stream};

    fn random(n: usize, episode: u64) -> Vec<f32> {
        let key = RngKey { seed: 1, stream: Stream::Init, episode, agent: 0 };
        (0..n as u32).map(|i| key.uniform_f32(i) * 2.0 - 1.0).collect()
    }

    #[test]
    fn every_level_agrees_with_f64_and_a_row_does_not_see_its_neighbours() {
        for (rows, n, k) in [(1, 1, 1), (1, 33, 7), (8, 64, 128), (9, 100, 65), (19, 31, 128), (0, 40, 16)] {
            let (a, w) = (random(rows * k, 1), random(n * k, 2));
            let packed = Packed::new(n, k, |i| w[i]);
            for level in Level::available() {
                let mut out = vec![f32::NAN; rows * n];
                gemm(level, &a, &packed, &mut out);
                for r in 0..rows {
                    for c in 0..n {
                        let wanted: f64 =
                            (0..k).map(|i| f64::from(a[r * k + i]) * f64::from(w[c * k + i])).sum();
                        let got = f64::from(out[r * n + c]);
                        assert!(
                            (got - wanted).abs() < 1e-5 * (k as f64).sqrt(),
                            "{level:?} {r},{c}: {got} {wanted}"
                        );
                    }
                    let mut alone = vec![f32::NAN; n];
                    gemm(level, &a[r * k..(r + 1) * k], &packed, &mut alone);
                    assert!(
                        alone.iter().zip(&out[r * n..]).all(|(x, y)| x.to_bits() == y.to_bits()),
                        "{level:?}"
                    );
                }
            }
        }
    }
}
