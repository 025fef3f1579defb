// Products x · wᵀ (product.cuh) of few rows: a matter of reading w once, with much of it under way at any time.
//
// x lies in shared memory, whole. A warp takes 16 columns, all their inputs, and then the next ones that are its own, by a
// ring in shared memory of its own that it fills ahead, across the end of columns too. Other warps bring x: copies are waited
// for in their order, and who brings both would wait for all the weights that are under way before it has x.
#include "product.cuh"

constexpr u32 DEPTH = 64, STRIDE = DEPTH + 8, STAGES = 6; // of a ring; products.rs knows
constexpr u32 BRINGERS = 4;                               // warps that bring x; products.rs knows

// The sums of the inputs from `from` on and below `to`, at most `part`. `give` gets a row, which group of columns of w, which
// eight rows of a fragment the row is of, and the lane's sums of the fragment.
template <u32 FRAGMENTS, bool GATED, class Give>
DEVICE void run(const u32* count, const Operands& of, u32 from, u32 to, u32 part, Give give) {
  constexpr u32 ROWS = FRAGMENTS * 16, COLUMNS = GATED ? 8 : 16;
  DYNAMIC_SHARED(shared);
  Bf16* x = (Bf16*)shared; // [row][input], rows 8 elements longer
  const u32 x_stride = part + 8;
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, workers = blockDim.x / WARP - BRINGERS;
  const u32 rows = *count, row0 = blockIdx.y * ROWS;
  const bool whole = of.whole();

  const bool brings_x = warp >= workers;
  Bf16* ring = x + ROWS * x_stride + warp * STAGES * 16 * STRIDE;
  const u32 groups = (of.outputs + COLUMNS - 1) / COLUMNS, apart = gridDim.x * workers;
  const u32 own = blockIdx.x + warp * gridDim.x;
  u32 ahead = own, ahead_k = from;
  const auto bring = [&](u32 stage) {
    if (ahead < groups) {
      fetch(Crew{lane, WARP}, ring + stage * 16 * STRIDE, of.w, 16, ahead_k, DEPTH, of.inputs, whole,
            [&](u32 line, bool& there) { return row_of_w<GATED>(ahead * COLUMNS, line, of.outputs, there); });
      ahead_k += DEPTH;
      if (ahead_k >= to) {
        ahead_k = from;
        ahead += apart;
      }
    }
    commit_copies();
  };
  // No kernel before this one writes weights.
  for (u32 stage = 0; stage + 1 < STAGES && !brings_x; ++stage) bring(stage);
  after_those_before();
  if (brings_x) {
    const u32 lines = row0 < rows ? min(rows - row0, ROWS) : 0;
    fetch(Crew{threadIdx.x - workers * WARP, BRINGERS * WARP}, x, of.x, lines, from, part, of.inputs, whole,
          [&](u32 line, bool&) { return row0 + line; });
    commit_copies();
    wait_copies<0>();
  }
  __syncthreads();
  if (brings_x) return;

  u32 stage = 0;
  for (u32 group = own; group < groups; group += apart) {
    float sums[FRAGMENTS][2][4] = {};
    for (u32 k0 = 0; k0 < to - from; k0 += DEPTH) {
      wait_copies<STAGES - 2>();
      // The stage's weights are there for all lanes, and all are done with the stage that is filled next.
      __syncwarp();
      bring((stage + STAGES - 1) % STAGES);
      const Bf16* w = ring + stage * 16 * STRIDE;
#pragma unroll
      for (u32 k = 0; k < DEPTH; k += 16) {
        // Matrices of w: (columns 0–7, k 0–7), (0–7, 8–15), (8–15, 0–7), (8–15, 8–15).
        u32 b[4];
        load_matrices(b, w + (lane / 16 * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; ++f) {
          // What a fragment has of rows that are not there is whatever lies in its place, and goes nowhere.
          u32 a[4];
          load_matrices(a, x + (f * 16 + lane % 16) * x_stride + k0 + k + lane / 16 * 8);
          multiply_add(sums[f][0], a, b[0], b[1]);
          multiply_add(sums[f][1], a, b[2], b[3]);
        }
      }
      stage = (stage + 1) % STAGES;
    }
#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const u32 row = row0 + f * 16 + lane / 4 + half * 8;
        if (row < rows) give(row, group, half, sums[f]);
      }
    }
  }
}

// y[z][row][output]: the sums of `part` inputs, a segment, for each z; `apart` elements between two z.
template <u32 FRAGMENTS>
DEVICE void plain(const u32* count, const Operands& of, float* y, u32 part, u64 apart) {
  const u32 from = blockIdx.z * part;
  y += blockIdx.z * apart;
  run<FRAGMENTS, false>(count, of, from, min(from + part, of.inputs), part,
                        [&](u32 row, u32 group, u32 half, const float(&sums)[2][4]) {
                          store_sums(y, row, group * 16, half, sums, of.outputs);
                        });
}

// to[row][output] = silu(gate) · up.
template <u32 FRAGMENTS>
DEVICE void gated(const u32* count, const Operands& of, Bf16* to) {
  const u32 part = (of.inputs + DEPTH - 1) / DEPTH * DEPTH;
  run<FRAGMENTS, true>(count, of, 0, of.inputs, part, [&](u32 row, u32 group, u32 half, const float(&sums)[2][4]) {
    store_gated(to, row, group * 8, half, sums, of.outputs);
  });
}

// Up to 16 rows, and up to 32. `segment` is `part`; the kernels of more rows tell the two apart.
KERNEL(512) multiply_few(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs, u32, u32 part,
                         u64 apart) {
  plain<1>(count, Operands{x, w, outputs, inputs}, y, part, apart);
}

KERNEL(512) multiply_some(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs, u32, u32 part,
                          u64 apart) {
  plain<2>(count, Operands{x, w, outputs, inputs}, y, part, apart);
}

KERNEL(512) gate_few(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  gated<1>(count, Operands{x, w, outputs, inputs}, to);
}

KERNEL(512) gate_some(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  gated<2>(count, Operands{x, w, outputs, inputs}, to);
}
