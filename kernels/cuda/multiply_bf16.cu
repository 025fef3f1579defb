// y (+)= x · wᵀ (+ bias) on tensor cores: x is [rows, inputs] and w [outputs, inputs] in bf16, y [rows, outputs] in f32.
//
// One tiling for every number of rows: a block makes 64 × 64 elements, its four warps 16 columns each, in steps of 16
// inputs in ascending order; fragments of 16 rows that hold none are left out. So an element's bits depend on its own
// row and column alone.
#include "element.cuh"
#include "tensor_core.cuh"

constexpr u32 TILE = 64, DEPTH = 32, STAGES = 4;
// Rows of shared memory are 80 bytes apart: the eight rows of a matrix lie in different banks.
constexpr u32 STRIDE = DEPTH + 8;

struct Stage {
  Bf16 x[TILE * STRIDE];
  Bf16 w[TILE * STRIDE];
};

// Brings `lines` rows of DEPTH elements from `from` on; what lies outside of the matrix is 0.
DEVICE void fetch(Bf16* to, const Bf16* from, u32 first, u32 lines, u32 all, u32 k0, u32 inputs, bool whole) {
  if (whole) {
    for (u32 i = threadIdx.x; i < lines * (DEPTH / 8); i += blockDim.x) {
      const u32 line = i / (DEPTH / 8), k = i % (DEPTH / 8) * 8;
      const bool there = first + line < all && k0 + k < inputs;
      copy_async(to + line * STRIDE + k, there ? from + (u64)(first + line) * inputs + k0 + k : from, there);
    }
  } else {
    for (u32 i = threadIdx.x; i < lines * DEPTH; i += blockDim.x) {
      const u32 line = i / DEPTH, k = i % DEPTH;
      const bool there = first + line < all && k0 + k < inputs;
      to[line * STRIDE + k] = there ? from[(u64)(first + line) * inputs + k0 + k] : Bf16{0};
    }
  }
}

KERNEL(128) multiply(const u32* count, const Bf16* x, const Bf16* w, const Bf16* bias, float* y, u32 outputs,
                     u32 inputs, u32 add) {
  __shared__ __align__(16) Stage stages[STAGES];
  const u32 rows = *count;
  const u32 row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
  if (row0 >= rows) return;
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 fragments = min((rows - row0 + 15) / 16, TILE / 16);
  // Copies of 16 bytes need rows that begin at multiples of it.
  const bool whole = inputs % 8 == 0 && ((u64)x | (u64)w) % 16 == 0;
  const u32 steps = (inputs + DEPTH - 1) / DEPTH;
  float sums[TILE / 16][2][4] = {};

  for (u32 step = 0; step + 1 < STAGES; ++step) {
    if (step < steps) {
      fetch(stages[step].x, x, row0, fragments * 16, rows, step * DEPTH, inputs, whole);
      fetch(stages[step].w, w, column0, TILE, outputs, step * DEPTH, inputs, whole);
    }
    commit_copies();
  }
  for (u32 step = 0; step < steps; ++step) {
    wait_copies<STAGES - 2>();
    // The step's data is there for all threads, and all are done with the stage that is filled next.
    __syncthreads();
    const u32 next = step + STAGES - 1;
    if (next < steps) {
      fetch(stages[next % STAGES].x, x, row0, fragments * 16, rows, next * DEPTH, inputs, whole);
      fetch(stages[next % STAGES].w, w, column0, TILE, outputs, next * DEPTH, inputs, whole);
    }
    commit_copies();
    const Stage& stage = stages[step % STAGES];
    for (u32 k = 0; k < DEPTH; k += 16) {
      // Matrices of w: (columns 0–7, k 0–7), (0–7, 8–15), (8–15, 0–7), (8–15, 8–15).
      u32 b[4];
      load_matrices(b, stage.w + (warp * 16 + lane / 16 * 8 + lane % 8) * STRIDE + k + lane / 8 % 2 * 8);
#pragma unroll
      for (u32 f = 0; f < TILE / 16; ++f) {
        if (f < fragments) {
          u32 a[4];
          load_matrices(a, stage.x + (f * 16 + lane % 16) * STRIDE + k + lane / 16 * 8);
          multiply_add(sums[f][0], a, b[0], b[1]);
          multiply_add(sums[f][1], a, b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (u32 f = 0; f < TILE / 16; ++f) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      const u32 row = row0 + f * 16 + lane / 4 + i / 2 % 2 * 8;
      const u32 column = column0 + warp * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (row >= rows || column >= outputs) continue;
      float* to = y + (u64)row * outputs + column;
      const float sum = sums[f][i / 4][i % 4];
      const float value = bias ? sum + to_float(bias[column]) : sum;
      *to = add ? *to + value : value;
    }
  }
}
