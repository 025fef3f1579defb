//! `y = x · Wᵀ` with weights packed once per version.
//!
//! Every output element is one chain of multiply-adds over the inputs in ascending order, whatever the tile it
//! falls into, so its bits do not depend on the batch. Nothing splits the sum over the inputs.
#![allow(unsafe_code)]

use std::cell::RefCell;

use half::bf16;
use rayon::prelude::*;

use super::buffer::{Aligned, Shared};
use super::level::{Kernel, Level};
use super::simd::Simd;
use crate::KernelError;
use crate::weights::WeightSet;

/// Rows of activations are padded to this many floats, so that full tiles are stored without remainders.
pub(crate) const ROW_FLOATS: usize = 32;

/// Below this many multiply-adds a product runs on the calling thread: waking another one costs more.
const PARALLEL_FMAS: usize = 1 << 21;
/// The same where the weights come from memory, which takes longer than multiplying.
const STREAMED_FMAS: usize = 1 << 18;

thread_local! {
    /// A panel of bf16 in f32, for tiles that read it one after the other.
    static WIDE: RefCell<Aligned<f32>> = RefCell::default();
}

/// Length of an activation row of `width` elements.
pub(crate) fn padded(width: usize) -> usize {
    width.next_multiple_of(ROW_FLOATS)
}

enum Elements {
    F32(Aligned<f32>),
    Bf16(Aligned<bf16>),
}

/// A weight matrix `[outputs, inputs]` in panels of two vectors of outputs, inputs ascending within a panel.
pub(crate) struct Packed {
    elements: Elements,
    inputs: usize,
    panels: usize,
    level: Level,
    parallel_fmas: usize,
}

impl Packed {
    /// Packs tensor `name`, in the type it has; `streamed`: of weights that no cache holds.
    ///
    /// # Errors
    /// [`KernelError::Weights`] when an element is not finite.
    pub(crate) fn new(
        level: Level,
        weights: &WeightSet,
        name: &str,
        [outputs, inputs]: [usize; 2],
        streamed: bool,
    ) -> Result<Self, KernelError> {
        let width = 2 * level.lanes();
        let panels = padded(outputs) / width;
        let elements = if let Some(rows) = weights.f32(name) {
            Elements::F32(pack(name, rows, inputs, panels, width, |x: f32| x.is_finite())?)
        } else if let Some(rows) = weights.bf16(name) {
            Elements::Bf16(pack(name, rows, inputs, panels, width, bf16::is_finite)?)
        } else {
            return Err(KernelError::Weights(format!("tensor `{name}` is not in the host's memory")));
        };
        let parallel_fmas = if streamed { STREAMED_FMAS } else { PARALLEL_FMAS };
        Ok(Self { elements, inputs, panels, level, parallel_fmas })
    }

    /// Bytes of the packed copy.
    pub(crate) fn bytes(&self) -> usize {
        match &self.elements {
            Elements::F32(all) => size_of_val::<[f32]>(all),
            Elements::Bf16(all) => size_of_val::<[bf16]>(all),
        }
    }

    /// Length of an output row.
    pub(crate) fn output_stride(&self) -> usize {
        self.panels * 2 * self.level.lanes()
    }

    /// `y[r] (+)= x[r] · Wᵀ (+ bias)` for `rows` rows; `y` has [`Packed::output_stride`], `bias` as many elements.
    pub(crate) fn multiply(
        &self,
        x: &[f32],
        x_stride: usize,
        rows: usize,
        bias: Option<&[f32]>,
        y: &mut [f32],
        mode: Mode,
    ) {
        if rows == 0 {
            return;
        }
        let stride = self.output_stride();
        // The pointers below stay inside these bounds.
        assert!(x_stride >= self.inputs && x.len() >= (rows - 1) * x_stride + self.inputs, "input too short");
        assert!(y.len() >= rows * stride && bias.is_none_or(|b| b.len() >= stride), "output too short");
        let y = Shared(y.as_mut_ptr());
        let part = |from: usize, to: usize| {
            WIDE.with_borrow_mut(|wide| {
                if matches!(self.elements, Elements::Bf16(_)) {
                    wide.grow(self.inputs * 2 * self.level.lanes());
                }
                let product = Product {
                    x: x.as_ptr(),
                    x_stride,
                    rows,
                    inputs: self.inputs,
                    bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                    y: y.get(),
                    y_stride: stride,
                    mode,
                    panels: (from, to),
                    wide: wide.as_mut_ptr(),
                };
                // SAFETY: the asserts above, and `elements` holds `panels` whole panels, `wide` one of bf16; each part writes
                // the columns of its own panels.
                unsafe {
                    match &self.elements {
                        Elements::F32(all) => self.level.run(WithF32(product, all.as_ptr())),
                        Elements::Bf16(all) => self.level.run(WithBf16(product, all.as_ptr())),
                    }
                }
            });
        };
        let fmas = rows * self.inputs * stride;
        let threads = rayon::current_num_threads();
        if threads == 1 || fmas < self.parallel_fmas {
            part(0, self.panels);
        } else {
            // Tasks of four panels at least: the widest tile of a single row.
            let tasks = (fmas / (self.parallel_fmas / 4)).min(4 * threads).min(self.panels.div_ceil(4));
            let each = self.panels.div_ceil(tasks).next_multiple_of(4);
            (0..self.panels.div_ceil(each)).into_par_iter().for_each(|t| {
                part(t * each, ((t + 1) * each).min(self.panels));
            });
        }
    }
}

/// What happens to the old `y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Overwritten.
    Store,
    /// Added to.
    Add,
}

/// The refusal of a tensor with NaN or infinity in it.
pub(crate) fn not_finite(name: &str) -> KernelError {
    KernelError::Weights(format!("tensor `{name}` has an element that is not finite"))
}

fn pack<T: bytemuck::Pod + Send + Sync>(
    name: &str,
    rows: &[T],
    inputs: usize,
    panels: usize,
    width: usize,
    finite: impl Fn(T) -> bool + Sync,
) -> Result<Aligned<T>, KernelError> {
    let mut all = Aligned::zeroed(panels * width * inputs);
    let good =
        all.par_chunks_mut(width * inputs).zip(rows.par_chunks(width * inputs)).all(|(panel, rows)| {
            let mut good = true;
            for (j, row) in rows.chunks_exact(inputs).enumerate() {
                for (to, &x) in panel[j..].iter_mut().step_by(width).zip(row) {
                    good &= finite(x);
                    *to = x;
                }
            }
            good
        });
    if good { Ok(all) } else { Err(not_finite(name)) }
}

#[derive(Clone, Copy)]
struct Product {
    x: *const f32,
    x_stride: usize,
    rows: usize,
    inputs: usize,
    bias: *const f32,
    y: *mut f32,
    y_stride: usize,
    mode: Mode,
    panels: (usize, usize),
    /// Room for a panel of bf16 in f32.
    wide: *mut f32,
}

/// What a tile asks of memory on its way, `step` bytes further for each input. The tiles of a panel share out the panel
/// after it: the first of them waits for memory, the others find their panel in the cache.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    step: usize,
}

impl Ahead {
    /// Few rows take their panels once: the hardware sees those streams coming.
    const NOTHING: Self = Self { from: std::ptr::null(), step: 0 };
}

/// How a weight type becomes a vector of floats.
trait Element: Copy {
    /// Whether that takes more than loading it.
    const NARROW: bool;
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
}

impl Element for f32 {
    const NARROW: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(from) }
    }
}

impl Element for bf16 {
    const NARROW: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(from) }
    }
}

struct WithF32(Product, *const f32);
struct WithBf16(Product, *const bf16);

impl Kernel for WithF32 {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's.
        unsafe { self.0.run::<S, f32>(self.1) }
    }
}

impl Kernel for WithBf16 {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's.
        unsafe { self.0.run::<S, bf16>(self.1) }
    }
}

impl Product {
    /// SAFETY: `x`, `bias`, `y` and `w` span the rows and panels named, and `wide` a panel where `w` is narrow.
    #[inline(always)]
    unsafe fn run<S: Simd, E: Element>(self, w: *const E) {
        let roomy = S::TILE_ROWS == 12;
        let mut panel = self.panels.0;
        // Few rows: several panels at a time, so that enough independent chains hide the latency.
        // SAFETY: `panel + P <= panels.1` before each tile.
        unsafe {
            match self.rows {
                1 => self.across::<S, E, 1, 4>(w, &mut panel),
                2 if roomy => self.across::<S, E, 2, 4>(w, &mut panel),
                2 => self.across::<S, E, 2, 2>(w, &mut panel),
                3 if roomy => self.across::<S, E, 3, 2>(w, &mut panel),
                4 if roomy => self.across::<S, E, 4, 2>(w, &mut panel),
                5 if roomy => self.across::<S, E, 5, 2>(w, &mut panel),
                6 if roomy => self.across::<S, E, 6, 2>(w, &mut panel),
                _ => {}
            }
            let tiles = self.rows.div_ceil(S::TILE_ROWS);
            while panel < self.panels.1 {
                let mut row = 0;
                let bytes = 2 * S::LANES * self.inputs * size_of::<E>() / tiles;
                let length = 2 * S::LANES * self.inputs;
                let next = w.wrapping_add((panel + 1) * length).cast::<u8>();
                // Fewer tiles widen what they read in less time than this takes.
                let widened = E::NARROW && tiles > 3;
                if widened {
                    for at in (0..length).step_by(S::LANES) {
                        S::store(self.wide.add(at), E::load::<S>(w.add(panel * length + at)));
                    }
                }
                for tile in 0..tiles {
                    let end = (tile + 1) * self.rows / tiles;
                    let ahead =
                        Ahead { from: next.wrapping_add(tile * bytes), step: bytes / self.inputs + 1 };
                    if widened {
                        let w = self.wide.cast_const().wrapping_sub(panel * length);
                        self.down::<S, f32>(w, row, end - row, panel, ahead);
                    } else {
                        self.down::<S, E>(w, row, end - row, panel, ahead);
                    }
                    row = end;
                }
                panel += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn across<S: Simd, E: Element, const R: usize, const P: usize>(
        self,
        w: *const E,
        panel: &mut usize,
    ) {
        while *panel + P <= self.panels.1 {
            // SAFETY: the caller's, and the bound just checked.
            unsafe { self.tile::<S, E, R, P>(w, 0, *panel, Ahead::NOTHING) }
            *panel += P;
        }
    }

    #[inline(always)]
    unsafe fn down<S: Simd, E: Element>(
        self,
        w: *const E,
        row: usize,
        rows: usize,
        panel: usize,
        ahead: Ahead,
    ) {
        // SAFETY: the caller's; arms above TILE_ROWS are never reached, and the test lets them compile to nothing.
        unsafe {
            match rows {
                1 => self.tile::<S, E, 1, 1>(w, row, panel, ahead),
                2 => self.tile::<S, E, 2, 1>(w, row, panel, ahead),
                3 => self.tile::<S, E, 3, 1>(w, row, panel, ahead),
                4 => self.tile::<S, E, 4, 1>(w, row, panel, ahead),
                5 if S::TILE_ROWS >= 5 => self.tile::<S, E, 5, 1>(w, row, panel, ahead),
                6 if S::TILE_ROWS >= 6 => self.tile::<S, E, 6, 1>(w, row, panel, ahead),
                7 if S::TILE_ROWS >= 7 => self.tile::<S, E, 7, 1>(w, row, panel, ahead),
                8 if S::TILE_ROWS >= 8 => self.tile::<S, E, 8, 1>(w, row, panel, ahead),
                9 if S::TILE_ROWS >= 9 => self.tile::<S, E, 9, 1>(w, row, panel, ahead),
                10 if S::TILE_ROWS >= 10 => self.tile::<S, E, 10, 1>(w, row, panel, ahead),
                11 if S::TILE_ROWS >= 11 => self.tile::<S, E, 11, 1>(w, row, panel, ahead),
                12 if S::TILE_ROWS >= 12 => self.tile::<S, E, 12, 1>(w, row, panel, ahead),
                _ => {}
            }
        }
    }

    /// `R` rows from `row` on times `P` panels from `panel` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, E: Element, const R: usize, const P: usize>(
        self,
        w: *const E,
        row: usize,
        panel: usize,
        ahead: Ahead,
    ) {
        let width = 2 * S::LANES;
        let panel_len = width * self.inputs;
        // SAFETY: rows `row..row + R` and panels `panel..panel + P` exist (the callers' bounds).
        unsafe {
            let x: [*const f32; R] = std::array::from_fn(|r| self.x.add((row + r) * self.x_stride));
            let w: [*const E; P] = std::array::from_fn(|p| w.wrapping_add((panel + p) * panel_len));
            let mut sums = [[[S::splat(0.0); 2]; P]; R];
            for i in 0..self.inputs {
                if ahead.step > 0 {
                    S::fetch(ahead.from.wrapping_add(i.wrapping_mul(ahead.step)));
                }
                let mut column = [[S::splat(0.0); 2]; P];
                for p in 0..P {
                    let at = w[p].add(i.wrapping_mul(width));
                    column[p] = [E::load::<S>(at), E::load::<S>(at.add(S::LANES))];
                }
                for r in 0..R {
                    let a = S::splat(*x[r].add(i));
                    for p in 0..P {
                        sums[r][p][0] = S::fma(a, column[p][0], sums[r][p][0]);
                        sums[r][p][1] = S::fma(a, column[p][1], sums[r][p][1]);
                    }
                }
            }
            for (r, row_sums) in sums.iter().enumerate() {
                for (p, panel_sums) in row_sums.iter().enumerate() {
                    for (half, &sum) in panel_sums.iter().enumerate() {
                        let at = (panel + p) * width + half * S::LANES;
                        let to = self.y.add((row + r) * self.y_stride + at);
                        let mut v = sum;
                        if !self.bias.is_null() {
                            v = S::add(v, S::load(self.bias.add(at)));
                        }
                        if self.mode == Mode::Add {
                            v = S::add(S::load(to), v);
                        }
                        S::store(to, v);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
