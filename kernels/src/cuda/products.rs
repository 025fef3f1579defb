//! How products of matrices are cut: into segments of inputs, by the weight's sizes alone, and into blocks, by the rows and
//! the card.

use super::driver::{Address, Chip, Launch, Matmul};
use super::launches::{Surroundings, launch};
use super::step::Count;
use crate::shape::ModelShape;

/// A product in blocks of rows and columns, as `multiply_f32.cu` and `multiply_bf16.cu` have it.
struct Tiling {
    /// The kernel that gives sums of one segment a block.
    sums: &'static str,
    /// The kernel that gives sums of all segments; where there is none, a block never has more than one.
    whole: &'static str,
    /// The kernel that gives silu(gate) · up.
    gate: &'static str,
    /// Of a block.
    rows: usize,
    /// Of a block; of `gate` half as many.
    columns: usize,
    threads: u32,
    /// Parts of the inputs that are under way at once, in shared memory of the launch's making.
    stages: usize,
    /// Inputs of such a part.
    depth: usize,
}

const MORE: Tiling = Tiling {
    sums: "multiply_more",
    whole: "",
    gate: "gate_more",
    rows: 64,
    columns: 32,
    threads: 64,
    stages: 3,
    depth: 64,
};
const MANY: Tiling = Tiling {
    sums: "multiply_many",
    whole: "multiply_whole",
    gate: "gate_many",
    rows: 128,
    columns: 128,
    threads: 256,
    stages: 4,
    depth: 32,
};
/// Of f32; there is no `gate`.
const EXACT: Tiling = Tiling {
    sums: "multiply",
    whole: "multiply",
    gate: "",
    rows: 64,
    columns: 64,
    threads: 256,
    stages: 0,
    depth: 0,
};

impl Tiling {
    fn shared_bytes(&self) -> usize {
        self.stages * (self.rows + self.columns) * (self.depth + 8) * 2
    }
}

/// A product of few rows, each warp taking columns in turn, as `multiply_few.cu` has it.
struct Stream {
    sums: &'static str,
    gate: &'static str,
    rows: usize,
}

const FEW: Stream = Stream { sums: "multiply_few", gate: "gate_few", rows: 16 };
const SOME: Stream = Stream { sums: "multiply_some", gate: "gate_some", rows: 32 };

/// Columns of a warp; of `gate` half as many.
const COLUMNS: usize = 16;

/// Stages of a warp's ring.
const STAGES: usize = 6;

/// Most warps of a block that multiply, and those that bring the rows.
const MOST_WARPS: usize = 12;
const BRINGERS: usize = 4;

impl Stream {
    /// Blocks along x, warps that multiply and bytes of shared memory for `groups` groups of columns in `parts` parts of
    /// `part` inputs, so that all multiprocessors have as much to do; `None` where the rows do not fit into a block's
    /// memory.
    fn cut(&self, chip: Chip, groups: usize, parts: usize, part: usize) -> Option<(usize, usize, usize)> {
        let rows = 2 * self.rows * (part + 8);
        let ring = 2 * STAGES * COLUMNS * (DEPTH + 8);
        let most = (chip.shared_bytes.checked_sub(rows)? / ring).min(MOST_WARPS);
        if most == 0 {
            return None;
        }
        let places = (chip.multiprocessors / parts).max(1);
        let rounds = groups.div_ceil(places * most);
        let warps = groups.div_ceil(places * rounds);
        Some((groups.min(places), warps, rows + warps * ring))
    }
}

/// Elements of a block of `swiglu`.
const SWIGLU: usize = 4 * 256;

/// Inputs of a segment are a multiple of this many: of any stage.
const DEPTH: usize = 64;

/// Warps of 16 columns and a segment that keep a card busy with few rows. It is no matter of the card there is: bits depend
/// on it.
const BUSY: usize = 608;

/// Below this many blocks the segments of many rows get blocks of their own.
const IDLE: usize = 48;

/// Fewest inputs of a segment.
const LEAST_SEGMENT: usize = 128;

/// In what order a product's inputs are summed: a matter of the weight's sizes alone, so that a row's bits are the same
/// in any batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segments {
    /// Inputs of one, a multiple of [`DEPTH`].
    inputs: usize,
    /// How many.
    count: usize,
}

impl Segments {
    fn of(outputs: usize, inputs: usize, bf16: bool) -> Self {
        let wanted = if bf16 { BUSY / outputs.div_ceil(COLUMNS) } else { 1 };
        let inputs_each = inputs.div_ceil(wanted.clamp(1, inputs.div_ceil(LEAST_SEGMENT)));
        let each = inputs_each.next_multiple_of(DEPTH);
        Self { inputs: each, count: inputs.div_ceil(each) }
    }

    /// One of all inputs.
    fn whole(inputs: usize) -> Self {
        Self { inputs: inputs.next_multiple_of(DEPTH), count: 1 }
    }

    /// In how many parts the sums of `rows` rows come.
    fn parts(self, rows: usize, outputs: usize, bf16: bool) -> usize {
        let blocks = rows.div_ceil(MANY.rows) * outputs.div_ceil(MANY.columns);
        if bf16 && (rows <= MORE.rows || blocks <= IDLE) { self.count } else { 1 }
    }
}

/// Most sums, over all parts, that products of at most `rows` rows are given out in.
fn most_sums(outputs: usize, inputs: usize, rows: usize, bf16: bool) -> usize {
    let parts = |rows: usize| Segments::of(outputs, inputs, bf16).parts(rows, outputs, bf16);
    // The number of blocks grows with the rows from one border of tiles to the next.
    let borders = (0..rows).step_by(MANY.rows).chain([rows.min(MORE.rows), rows]);
    borders.map(|rows| rows * outputs * parts(rows)).max().unwrap_or(0)
}

/// Floats that the sums of the largest product of a step of `tokens` tokens take.
pub(super) fn sums_room(shape: &ModelShape, tokens: usize, bf16: bool) -> usize {
    let inner = shape.heads * shape.head_dim;
    let products = [(shape.qkv_rows(), shape.hidden), (shape.hidden, inner), (shape.hidden, shape.ffn)];
    products.into_iter().map(|(outputs, inputs)| most_sums(outputs, inputs, tokens, bf16)).max().unwrap_or(0)
}

/// What a product's sums come in, for whoever adds them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) parts: usize,
    /// Elements from one part to the next.
    pub(super) apart: usize,
}

/// None.
pub(super) const NOTHING: Sums = Sums { parts: 0, apart: 0 };

/// `x · wᵀ`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) x: Address,
    pub(super) w: Address,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// Kernel, blocks along x and y, threads and bytes of shared memory.
type Cut = (&'static str, [usize; 2], usize, usize);

impl Surroundings<'_> {
    /// How a product of `rows` rows is cut, whose blocks along z take `part` inputs each in `parts` parts of all
    /// `segments`; of a gate, `outputs` are its gates.
    fn cut(
        &self,
        rows: usize,
        outputs: usize,
        segments: usize,
        [parts, part]: [usize; 2],
        gate: bool,
    ) -> Cut {
        let per = |columns: usize| if gate { columns / 2 } else { columns };
        let stream = [&FEW, &SOME].into_iter().find(|s| self.bf16() && rows <= s.rows);
        if let Some(stream) = stream
            && let Some((across, warps, shared)) =
                stream.cut(self.chip, outputs.div_ceil(per(COLUMNS)), parts, part)
        {
            let kernel = if gate { stream.gate } else { stream.sums };
            return (kernel, [across, 1], 32 * (warps + BRINGERS), shared);
        }
        let tiling = match rows {
            _ if !self.bf16() => &EXACT,
            _ if rows <= MORE.rows => &MORE,
            _ => &MANY,
        };
        let blocks = [outputs.div_ceil(per(tiling.columns)), rows.div_ceil(tiling.rows)];
        let kernel = match parts {
            _ if gate => tiling.gate,
            1 if segments > 1 => tiling.whole,
            _ => tiling.sums,
        };
        (kernel, blocks, tiling.threads as usize, tiling.shared_bytes())
    }

    /// A product of `rows` rows to `y`, in `parts` parts of the segments.
    fn product(
        &self,
        count: Count,
        rows: usize,
        product: Product,
        y: Address,
        segments: Segments,
        parts: usize,
    ) -> Launch {
        let Product { x, w, outputs, inputs } = product;
        let part = if parts == 1 { segments.inputs * segments.count } else { segments.inputs };
        let mut arguments = self.counted(count).add(x).add(w).add(y).add(outputs as u32).add(inputs as u32);
        if self.bf16() {
            let apart = (rows * outputs) as u64;
            arguments = arguments.add(segments.inputs as u32).add(part as u32).add(apart);
        }
        let (kernel, [across, down], threads, shared_bytes) =
            self.cut(rows, outputs, segments.count, [parts, part], false);
        let whole = Matmul { x, w, y, rows: rows as u32, outputs: outputs as u32, inputs: inputs as u32 };
        Launch {
            shared_bytes: shared_bytes as u32,
            instead: self.by_library(rows).then_some(whole),
            ..launch(kernel, [across, down, parts], threads as u32, arguments)
        }
    }

    /// Whether products of so many rows are left to a library: smaller ones are a matter of reading the weights.
    fn by_library(&self, rows: usize) -> bool {
        self.library && self.bf16() && rows > MORE.rows
    }

    /// A product of all tokens to the place of sums, and what it gives them in.
    pub(super) fn sum(&self, tokens: usize, product: Product) -> (Launch, Sums) {
        let Product { outputs, inputs, .. } = product;
        let segments = Segments::of(outputs, inputs, self.bf16());
        let parts = if self.by_library(tokens) { 1 } else { segments.parts(tokens, outputs, self.bf16()) };
        let y = self.activations.sums;
        let launch = self.product(Count::Tokens, tokens, product, y, segments, parts);
        (launch, Sums { parts, apart: tokens * outputs })
    }

    /// silu(gate) · up of all tokens: in bf16 by the product's own kernel; in f32, or after a library's product, by one
    /// after it.
    pub(super) fn gate(&self, tokens: usize, weight: Address, all: &mut Vec<Launch>) {
        let (ffn, inputs) = (self.shape.ffn, self.shape.hidden);
        let (normed, gate_up, gated) =
            (self.activations.normed, self.activations.gate_up, self.activations.gated);
        let segments = Segments::whole(inputs);
        if self.bf16() && !self.by_library(tokens) {
            let arguments = self.counted(Count::Tokens).add(normed).add(weight).add(gated);
            let arguments = arguments.add(ffn as u32).add(inputs as u32);
            let (kernel, [across, down], threads, shared_bytes) =
                self.cut(tokens, ffn, segments.count, [1, segments.inputs], true);
            let launch = launch(kernel, [across, down, 1], threads as u32, arguments);
            return all.push(Launch { shared_bytes: shared_bytes as u32, ..launch });
        }
        let product = Product { x: normed, w: weight, outputs: 2 * ffn, inputs };
        all.push(self.product(Count::Tokens, tokens, product, gate_up, segments, 1));
        let arguments = self.counted(Count::Tokens).add(gate_up).add(gated).add(ffn as u32);
        all.push(launch("swiglu", [ffn.div_ceil(SWIGLU), tokens, 1], 256, arguments));
    }

    /// Logits of `outputs` normed rows.
    pub fn head(&self, outputs: usize) -> Launch {
        let (vocab, hidden) = (self.shape.vocab, self.shape.hidden);
        let product =
            Product { x: self.activations.normed, w: self.model.head, outputs: vocab, inputs: hidden };
        self.product(Count::Outputs, outputs, product, self.activations.logits, Segments::whole(hidden), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_all_inputs_and_few_rows_keep_a_card_busy() {
        for (outputs, inputs) in
            [(1152, 896), (896, 896), (896, 4864), (1536, 8960), (2048, 1536), (64, 33), (7, 1)]
        {
            let segments = Segments::of(outputs, inputs, true);
            assert!(
                segments.inputs.is_multiple_of(DEPTH) && segments.inputs * segments.count >= inputs,
                "{segments:?}"
            );
            assert!(segments.inputs * (segments.count - 1) < inputs, "{segments:?}");
            let warps = outputs.div_ceil(COLUMNS) * segments.count;
            assert!(
                inputs < 4 * LEAST_SEGMENT || (BUSY / 2..=BUSY).contains(&warps),
                "{outputs} {inputs}: {warps}"
            );
            assert_eq!(segments.parts(1, outputs, true), segments.count);
            assert_eq!(segments.parts(60_000, 10_000, true), 1);
            assert_eq!(Segments::of(outputs, inputs, false).count, 1);
        }
    }

    #[test]
    fn there_is_room_for_the_sums_of_any_batch() {
        for (outputs, inputs) in [(1152, 896), (896, 4864), (1536, 8960), (64, 64)] {
            let segments = Segments::of(outputs, inputs, true);
            for most in [1, 15, 16, 17, 100, 129, 3000] {
                let room = most_sums(outputs, inputs, most, true);
                for rows in 1..=most {
                    let sums = rows * outputs * segments.parts(rows, outputs, true);
                    assert!(sums <= room, "{rows} of {most}: {sums} {room}");
                }
            }
        }
    }
}
