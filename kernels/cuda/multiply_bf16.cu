// Products x · wᵀ (product.cuh) of more rows than multiply_few.cu takes, on tensor cores.
//
// A warp takes FRAGMENTS × 16 rows and PAIRS × 16 columns; a block has ACROSS warps beside each other and DOWN below each
// other, and keeps STAGES times DEPTH inputs under way.
#include "product.cuh"

template <u32 DOWN, u32 ACROSS, u32 FRAGMENTS, u32 PAIRS, u32 DEPTH, u32 STAGES>
struct Tiling {
  static constexpr u32 WARP_ROWS = FRAGMENTS * 16, ROWS = DOWN * WARP_ROWS, COLUMNS = ACROSS * PAIRS * 16;
  static constexpr u32 STRIDE = DEPTH + 8, STAGE = (ROWS + COLUMNS) * STRIDE;

  // Sums the inputs from `from` on and below `to`, which are whole segments of `segment` inputs, or one where ONE says so:
  // then half of the registers for sums are not needed. `give` gets a row, a group of 16 columns of the tile, which eight
  // rows of a fragment it is of, and the lane's sums of the fragment.
  template <bool GATED, bool ONE, class Give>
  DEVICE_MEMBER static void run(const u32* count, const Operands& of, u32 from, u32 to, u32 segment, Give give) {
    DYNAMIC_SHARED(shared);
    Bf16* stages = (Bf16*)shared;
    const u32 row0 = blockIdx.y * ROWS, column0 = blockIdx.x * (GATED ? COLUMNS / 2 : COLUMNS);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, across = warp % ACROSS, down = warp / ACROSS;
    const u32 steps = (to - from + DEPTH - 1) / DEPTH, turn = segment / DEPTH;
    const Crew crew = {threadIdx.x, blockDim.x};
    const bool whole = of.whole();
    const auto fetch_w = [&](u32 step) {
      fetch(crew, stages + step % STAGES * STAGE + ROWS * STRIDE, of.w, COLUMNS, from + step * DEPTH, DEPTH, of.inputs, whole,
            [&](u32 line, bool& there) { return row_of_w<GATED>(column0, line, of.outputs, there); });
    };
    const u32 rows = *count;
    // No kernel before this one writes weights.
    for (u32 step = 0; step + 1 < STAGES; ++step) {
      if (step < steps) fetch_w(step);
    }
    after_those_before();
    if (row0 >= rows) return;
    // What a fragment has of rows that are not there is whatever lies in its place, and goes nowhere.
    const u32 lines = min(rows - row0, ROWS);
    const u32 mine = row0 + down * WARP_ROWS;
    const u32 fragments = mine < rows ? min((rows - mine + 15) / 16, FRAGMENTS) : 0;
    const auto fetch_x = [&](u32 step) {
      fetch(crew, stages + step % STAGES * STAGE, of.x, lines, from + step * DEPTH, DEPTH, of.inputs, whole,
            [&](u32 line, bool&) { return row0 + line; });
    };
    for (u32 step = 0; step + 1 < STAGES; ++step) {
      if (step < steps) fetch_x(step);
      commit_copies();
    }
    float sums[FRAGMENTS][PAIRS][2][4] = {}, total[FRAGMENTS][PAIRS][2][4] = {};
    u32 until = turn;
    for (u32 step = 0; step < steps; ++step) {
      wait_copies<STAGES - 2>();
      // The step's data is there for all threads, and all are done with the stage that is filled next.
      __syncthreads();
      if (step + STAGES - 1 < steps) {
        fetch_w(step + STAGES - 1);
        fetch_x(step + STAGES - 1);
      }
      commit_copies();
      const Bf16* x = stages + step % STAGES * STAGE;
      const Bf16* w = x + ROWS * STRIDE;
#pragma unroll
      for (u32 k = 0; k < DEPTH; k += 16) {
        // Matrices of w: (columns 0–7, k 0–7), (0–7, 8–15), (8–15, 0–7), (8–15, 8–15).
        u32 b[PAIRS][4];
#pragma unroll
        for (u32 p = 0; p < PAIRS; ++p) {
          const u32 line = (across * PAIRS + p) * 16 + lane / 16 * 8 + lane % 8;
          load_matrices(b[p], w + line * STRIDE + k + lane / 8 % 2 * 8);
        }
        u32 a[FRAGMENTS][4];
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; ++f) {
          if (f >= fragments) continue;
          load_matrices(a[f], x + (down * WARP_ROWS + f * 16 + lane % 16) * STRIDE + k + lane / 16 * 8);
        }
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; ++f) {
          if (f >= fragments) continue;
#pragma unroll
          for (u32 p = 0; p < PAIRS; ++p) {
            multiply_add(sums[f][p][0], a[f], b[p][0], b[p][1]);
            multiply_add(sums[f][p][1], a[f], b[p][2], b[p][3]);
          }
        }
      }
      const bool ends = step + 1 == until || step + 1 == steps;
      if (ONE || !ends) continue;
      until += turn;
#pragma unroll
      for (u32 f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
        for (u32 p = 0; p < PAIRS; ++p) {
#pragma unroll
          for (u32 i = 0; i < 8; ++i) {
            total[f][p][i / 4][i % 4] += sums[f][p][i / 4][i % 4];
            sums[f][p][i / 4][i % 4] = 0.0f;
          }
        }
      }
    }
#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const u32 row = mine + f * 16 + lane / 4 + half * 8;
        if (row >= rows) continue;
#pragma unroll
        for (u32 p = 0; p < PAIRS; ++p) give(row, across * PAIRS + p, half, ONE ? sums[f][p] : total[f][p]);
      }
    }
  }

  // y[z][row][output]: the sums of `part` inputs, whole segments, or ONE, for each z; `apart` elements between two z.
  template <bool ONE>
  DEVICE_MEMBER static void plain(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                                  u32 segment, u32 part, u64 apart) {
    const u32 from = blockIdx.z * part, to = min(from + part, inputs);
    y += blockIdx.z * apart;
    run<false, ONE>(count, Operands{x, w, outputs, inputs}, from, to, segment,
               [&](u32 row, u32 group, u32 half, const float(&sums)[2][4]) {
                 store_sums(y, row, blockIdx.x * COLUMNS + group * 16, half, sums, outputs);
               });
  }

  // to[row][output] = silu(gate) · up.
  DEVICE_MEMBER static void gated(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
    run<true, true>(count, Operands{x, w, outputs, inputs}, 0, inputs, inputs + DEPTH,
              [&](u32 row, u32 group, u32 half, const float(&sums)[2][4]) {
                store_gated(to, row, blockIdx.x * (COLUMNS / 2) + group * 8, half, sums, outputs);
              });
  }
};

// For up to 64 rows, and more; products.rs knows their sizes.
typedef Tiling<1, 2, 4, 1, 64, 3> More;
typedef Tiling<2, 4, 4, 2, 32, 4> Many;

// Each z has one segment.
KERNEL(64) multiply_more(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                        u32 segment, u32 part, u64 apart) {
  More::plain<true>(count, x, w, y, outputs, inputs, segment, part, apart);
}

CROWDED_KERNEL(256, 2) multiply_many(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                                     u32 segment, u32 part, u64 apart) {
  Many::plain<true>(count, x, w, y, outputs, inputs, segment, part, apart);
}

// All segments are one block's.
KERNEL(256) multiply_whole(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                          u32 segment, u32 part, u64 apart) {
  Many::plain<false>(count, x, w, y, outputs, inputs, segment, part, apart);
}

KERNEL(64) gate_more(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  More::gated(count, x, w, to, outputs, inputs);
}

CROWDED_KERNEL(256, 2) gate_many(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  Many::gated(count, x, w, to, outputs, inputs);
}
