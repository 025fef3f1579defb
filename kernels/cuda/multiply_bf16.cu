// Products x · wᵀ on tensor cores: x is [rows, inputs] and w [outputs, inputs] in bf16, sums are f32.
//
// An element's sum has one order, whatever the number of rows and the tiling: inputs come in segments, whose length is
// a matter of w's sizes alone; a segment is summed 16 inputs at a time in ascending order, and segments are added up in
// ascending order, here or by whoever reads their sums. So an element's bits depend on its own row and column alone.
//
// A warp takes FRAGMENTS × 16 rows and PAIRS × 16 columns; a block has ACROSS warps beside each other and DOWN below each
// other, and keeps STAGES times DEPTH inputs under way.
#include "element.cuh"
#include "exponential.cuh"
#include "tensor_core.cuh"

struct alignas(8) Pair {
  float first, second;
};

struct Operands {
  const Bf16* x;
  const Bf16* w;
  u32 outputs; // rows of w; of a gated product half of them
  u32 inputs;
};

// Which row of w a tile has in a line. Plain: one after the other. Gated: w has `outputs` gates, then as many ups, and a
// tile eight gates and then their eight ups, so that one lane gets both sums of an element.
template <bool GATED>
DEVICE u32 row_of_w(u32 column0, u32 line, u32 outputs, bool& there) {
  const u32 column = GATED ? column0 + line / 16 * 8 + line % 8 : column0 + line;
  there = column < outputs;
  return GATED ? line % 16 / 8 * outputs + column : column;
}

// Begins to bring DEPTH inputs from `k0` on of `lines` rows; what lies outside of the matrix is 0. Rows of shared memory
// are an odd number of 16 bytes apart: the eight rows of a matrix lie in different banks.
template <u32 DEPTH, class RowOf>
DEVICE void fetch(Bf16* to, const Bf16* from, u32 lines, u32 k0, u32 inputs, bool whole, RowOf row_of) {
  constexpr u32 STRIDE = DEPTH + 8;
  if (whole) {
    for (u32 i = threadIdx.x; i < lines * (DEPTH / 8); i += blockDim.x) {
      const u32 line = i / (DEPTH / 8), k = i % (DEPTH / 8) * 8;
      bool there = true;
      const u64 row = row_of(line, there);
      there = there && k0 + k < inputs;
      copy_async(to + line * STRIDE + k, there ? from + row * inputs + k0 + k : from, there);
    }
  } else {
    for (u32 i = threadIdx.x; i < lines * DEPTH; i += blockDim.x) {
      const u32 line = i / DEPTH, k = i % DEPTH;
      bool there = true;
      const u64 row = row_of(line, there);
      there = there && k0 + k < inputs;
      to[line * STRIDE + k] = there ? from[row * inputs + k0 + k] : Bf16{0};
    }
  }
}

// Two sums beside each other, of which those that the row has room for are stored.
DEVICE void store_pair(float* to, float first, float second, u32 width, u32 room) {
  if ((int)room <= 0) return;
  if (width % 2 == 0) {
    *(Pair*)to = Pair{first, second};
  } else {
    to[0] = first;
    if (room > 1) to[1] = second;
  }
}

template <u32 DOWN, u32 ACROSS, u32 FRAGMENTS, u32 PAIRS, u32 DEPTH, u32 STAGES>
struct Tiling {
  static constexpr u32 WARP_ROWS = FRAGMENTS * 16, ROWS = DOWN * WARP_ROWS, COLUMNS = ACROSS * PAIRS * 16;
  static constexpr u32 STRIDE = DEPTH + 8, STAGE = (ROWS + COLUMNS) * STRIDE;

  // Sums the inputs from `from` on and below `to`, which are whole segments of `segment` inputs. `give` gets a row, a
  // group of 16 columns of the tile, which eight rows of a fragment it is of, and the lane's sums of the fragment.
  template <bool GATED, class Give>
  DEVICE_MEMBER static void run(const u32* count, const Operands& of, u32 from, u32 to, u32 segment, Give give) {
    DYNAMIC_SHARED(shared);
    Bf16* stages = (Bf16*)shared;
    const u32 row0 = blockIdx.y * ROWS, column0 = blockIdx.x * (GATED ? COLUMNS / 2 : COLUMNS);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, across = warp % ACROSS, down = warp / ACROSS;
    const u32 steps = (to - from + DEPTH - 1) / DEPTH, turn = segment / DEPTH;
    // Copies of 16 bytes need rows that begin at multiples of it.
    const bool whole = of.inputs % 8 == 0 && ((u64)of.x | (u64)of.w) % 16 == 0;
    const auto fetch_w = [&](u32 step) {
      fetch<DEPTH>(stages + step % STAGES * STAGE + ROWS * STRIDE, of.w, COLUMNS, from + step * DEPTH, of.inputs, whole,
            [&](u32 line, bool& there) { return row_of_w<GATED>(column0, line, of.outputs, there); });
    };
    // No kernel before this one writes weights.
    for (u32 step = 0; step + 1 < STAGES; ++step) {
      if (step < steps) fetch_w(step);
    }
    after_those_before();
    const u32 rows = *count;
    if (row0 >= rows) return;
    // What a fragment has of rows that are not there is whatever lies in its place, and goes nowhere.
    const u32 lines = min(rows - row0, ROWS);
    const u32 mine = row0 + down * WARP_ROWS;
    const u32 fragments = mine < rows ? min((rows - mine + 15) / 16, FRAGMENTS) : 0;
    const auto fetch_x = [&](u32 step) {
      fetch<DEPTH>(stages + step % STAGES * STAGE, of.x, lines, from + step * DEPTH, of.inputs, whole,
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
      if (step + 1 != until && step + 1 != steps) continue;
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
        for (u32 p = 0; p < PAIRS; ++p) give(row, across * PAIRS + p, half, total[f][p]);
      }
    }
  }

  // y[z][row][output]: the sums of `part` inputs, whole segments, for each z; `apart` elements between two z.
  DEVICE_MEMBER static void plain(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                                  u32 segment, u32 part, u64 apart) {
    const u32 from = blockIdx.z * part, to = min(from + part, inputs);
    y += blockIdx.z * apart;
    const u32 column0 = blockIdx.x * COLUMNS + threadIdx.x % 4 * 2;
    run<false>(count, Operands{x, w, outputs, inputs}, from, to, segment,
               [&](u32 row, u32 group, u32 half, const float(&sums)[2][4]) {
#pragma unroll
                 for (u32 eight = 0; eight < 2; ++eight) {
                   const u32 column = column0 + group * 16 + eight * 8;
                   float* to = y + (u64)row * outputs + column;
                   store_pair(to, sums[eight][half * 2], sums[eight][half * 2 + 1], outputs, outputs - column);
                 }
               });
  }

  // to[row][output] = silu(gate) · up.
  DEVICE_MEMBER static void gated(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
    const u32 column0 = blockIdx.x * (COLUMNS / 2) + threadIdx.x % 4 * 2;
    run<true>(count, Operands{x, w, outputs, inputs}, 0, inputs, inputs + DEPTH,
              [&](u32 row, u32 group, u32 half, const float(&sums)[2][4]) {
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                  const u32 column = column0 + group * 8 + i;
                  if (column >= outputs) continue;
                  const float gate = sums[0][half * 2 + i], up = sums[1][half * 2 + i];
                  store(to + (u64)row * outputs + column, gate / (1.0f + exponential(-gate)) * up);
                }
              });
  }
};

// For up to 16 rows, up to 32, up to 64, and more; launches.rs knows their sizes. Few rows are a matter of reading the
// weights: blocks are small, so that all multiprocessors have as much to do at once, and much is under way.
typedef Tiling<1, 1, 1, 1, 64, 5> Few;
typedef Tiling<1, 2, 2, 1, 64, 4> Some;
typedef Tiling<1, 2, 4, 1, 64, 3> More;
typedef Tiling<2, 4, 4, 2, 32, 4> Many;

KERNEL(32) multiply_few(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                       u32 segment, u32 part, u64 apart) {
  Few::plain(count, x, w, y, outputs, inputs, segment, part, apart);
}

KERNEL(64) multiply_some(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                        u32 segment, u32 part, u64 apart) {
  Some::plain(count, x, w, y, outputs, inputs, segment, part, apart);
}

KERNEL(64) multiply_more(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                        u32 segment, u32 part, u64 apart) {
  More::plain(count, x, w, y, outputs, inputs, segment, part, apart);
}

KERNEL(256) multiply_many(const u32* count, const Bf16* x, const Bf16* w, float* y, u32 outputs, u32 inputs,
                         u32 segment, u32 part, u64 apart) {
  Many::plain(count, x, w, y, outputs, inputs, segment, part, apart);
}

KERNEL(32) gate_few(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  Few::gated(count, x, w, to, outputs, inputs);
}

KERNEL(64) gate_some(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  Some::gated(count, x, w, to, outputs, inputs);
}

KERNEL(64) gate_more(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  More::gated(count, x, w, to, outputs, inputs);
}

KERNEL(256) gate_many(const u32* count, const Bf16* x, const Bf16* w, Bf16* to, u32 outputs, u32 inputs) {
  Many::gated(count, x, w, to, outputs, inputs);
}
