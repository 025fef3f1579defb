// y = x · wᵀ in f32: x is [rows, inputs], w [outputs, inputs], y [rows, outputs].
//
// An output element is one chain of fused multiply-adds over the inputs in ascending order, as on the CPU: its bits do
// not depend on the number of rows. A block makes 64 × 64 elements, a thread 4 × 4.
#include "device.cuh"

constexpr u32 TILE = 64, DEPTH = 16, EACH = 4, SIDE = TILE / EACH;

KERNEL(256) multiply(const u32* count, const float* x, const float* w, float* y, u32 outputs, u32 inputs) {
  // One more than the tile, so that the transposing stores go to different banks.
  __shared__ float xs[DEPTH][TILE + 1], ws[DEPTH][TILE + 1];
  after_those_before();
  const u32 rows = *count;
  const u32 row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
  if (row0 >= rows) return;
  const u32 across = threadIdx.x % SIDE, down = threadIdx.x / SIDE;
  float sums[EACH][EACH] = {};
  for (u32 k0 = 0; k0 < inputs; k0 += DEPTH) {
    for (u32 i = threadIdx.x; i < TILE * DEPTH; i += blockDim.x) {
      const u32 line = i / DEPTH, k = i % DEPTH;
      const bool inside = k0 + k < inputs;
      xs[k][line] = inside && row0 + line < rows ? x[(u64)(row0 + line) * inputs + k0 + k] : 0.0f;
      ws[k][line] = inside && column0 + line < outputs ? w[(u64)(column0 + line) * inputs + k0 + k] : 0.0f;
    }
    __syncthreads();
    for (u32 k = 0; k < DEPTH; ++k) {
      for (u32 r = 0; r < EACH; ++r) {
        for (u32 c = 0; c < EACH; ++c) {
          sums[r][c] = fmaf(xs[k][down + r * SIDE], ws[k][across + c * SIDE], sums[r][c]);
        }
      }
    }
    __syncthreads();
  }
  for (u32 r = 0; r < EACH; ++r) {
    for (u32 c = 0; c < EACH; ++c) {
      const u32 row = row0 + down + r * SIDE, column = column0 + across + c * SIDE;
      if (row >= rows || column >= outputs) continue;
      y[(u64)row * outputs + column] = sums[r][c];
    }
  }
}
