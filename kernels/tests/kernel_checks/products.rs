//! How kernels of products are launched, and their sums in f64.

use super::{Bench, Near, dot};

/// Rows of `x` and `w` multiplied over some inputs: the sum, and that of its terms' sizes.
pub fn product(
    x: &[f32],
    w: &[f32],
    inputs: usize,
    [row, output]: [usize; 2],
    [from, to]: [usize; 2],
) -> [f64; 2] {
    let of = |all: &[f32], line: usize| all[line * inputs..][from..to].to_vec();
    dot(of(x, row), of(w, output))
}

pub fn silu_times([gate, gate_sizes]: [f64; 2], [up, up_sizes]: [f64; 2]) -> Near {
    let silu = gate / (1.0 + (-gate).exp());
    // The slope of silu is at most 1.1.
    Near::sum(silu * up, 1.1 * gate_sizes * up.abs() + silu.abs() * up_sizes)
}

/// A kernel of products in bf16.
#[derive(Debug, Clone, Copy)]
pub struct Tiling {
    pub sums: &'static str,
    /// Of more than one segment in a block, where it is another.
    pub whole: &'static str,
    pub gate: &'static str,
    /// Of a block.
    pub rows: usize,
    /// Of a block; 0 where its warps take columns in turn.
    pub columns: usize,
    threads: usize,
    shared_bytes: usize,
}

/// Whose warps take columns in turn.
const STREAM: Tiling =
    Tiling { sums: "", whole: "", gate: "", rows: 0, columns: 0, threads: 0, shared_bytes: 0 };

pub const TILINGS: [Tiling; 4] = [
    Tiling { sums: "multiply_few", whole: "multiply_few", gate: "gate_few", rows: 16, ..STREAM },
    Tiling { sums: "multiply_some", whole: "multiply_some", gate: "gate_some", rows: 32, ..STREAM },
    Tiling {
        sums: "multiply_more",
        whole: "multiply_more",
        gate: "gate_more",
        rows: 64,
        columns: 32,
        threads: 64,
        shared_bytes: 3 * (64 + 32) * 72 * 2,
    },
    Tiling {
        sums: "multiply_many",
        whole: "multiply_whole",
        gate: "gate_many",
        rows: 128,
        columns: 128,
        threads: 256,
        shared_bytes: 4 * (128 + 128) * 40 * 2,
    },
];

impl Tiling {
    /// Blocks along x, threads and bytes of shared memory, where a block has `part` inputs at most. Where columns are
    /// taken in turn, `workers` warps of each of `across` blocks do so.
    pub fn cut(
        &self,
        columns: usize,
        part: usize,
        (across, workers): (usize, usize),
        gate: bool,
    ) -> [usize; 3] {
        if self.columns == 0 {
            return [across, 32 * (workers + 4), 2 * self.rows * (part + 8) + workers * 2 * 6 * 16 * 72];
        }
        let of_block = if gate { self.columns / 2 } else { self.columns };
        [columns.div_ceil(of_block), self.threads, self.shared_bytes]
    }

    /// Rows that are launched, and how many are there.
    pub fn rows(&self) -> [(usize, usize); 4] {
        [(1, 0), (1, 1), (self.rows, self.rows - 3), (self.rows + 3, self.rows + 1)]
    }
}

/// Inputs of rows that are there, on the card and here; on the card they lie `beside` elements beside 16 bytes.
pub fn operand(
    bench: &mut Bench,
    count: usize,
    rows: usize,
    inputs: usize,
    beside: usize,
) -> (u64, Vec<f32>) {
    let own = bench.elements(count * inputs, 1.0);
    // Nobody has written the others.
    let all = [&vec![f32::NAN; beside][..], &own, &vec![f32::NAN; (rows - count) * inputs]].concat();
    (bench.weights(&all) + 2 * beside as u64, own)
}
