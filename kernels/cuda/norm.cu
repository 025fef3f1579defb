// hidden[row] += the sums of a product, part after part; to[r] = hidden[rows[r]] / rms · weight (without `rows`:
// hidden[r]). One block a row.
#include "element.cuh"
#include "reduce.cuh"

constexpr u32 THREADS = 512;
// Elements of a thread whose loads are under way together.
constexpr u32 EACH = 4;

KERNEL(512) rms_norm(const u32* count, const u32* rows, float* hidden, const float* sums, u32 parts, u64 apart,
                     const Element* weight, Element* to, u32 width, float epsilon) {
  __shared__ float shared[THREADS / WARP];
  const bool there = blockIdx.x < *count;
  const u64 row = there && rows ? rows[blockIdx.x] : blockIdx.x;
  // The first elements of a thread, in most models all, stay in registers; their weights are there before they are.
  float kept[EACH], weights[EACH];
#pragma unroll
  for (u32 j = 0; j < EACH; ++j) {
    const u32 i = threadIdx.x + j * THREADS;
    weights[j] = i < width ? to_float(weight[i]) : 0.0f;
  }
  after_those_before();
  if (!there) return;
  hidden += row * width;
  sums += row * width;
  to += (u64)blockIdx.x * width;
  float squares = 0.0f;
  for (u32 first = threadIdx.x; first < width; first += EACH * THREADS) {
    float before[EACH], sum[EACH] = {};
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) before[j] = first + j * THREADS < width ? hidden[first + j * THREADS] : 0.0f;
#pragma unroll 4
    for (u32 part = 0; part < parts; ++part) {
#pragma unroll
      for (u32 j = 0; j < EACH; ++j) {
        if (first + j * THREADS < width) sum[j] += sums[part * apart + first + j * THREADS];
      }
    }
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
      const float x = before[j] + sum[j];
      if (parts > 0 && first + j * THREADS < width) hidden[first + j * THREADS] = x;
      if (first == threadIdx.x) kept[j] = x;
      squares = fmaf(x, x, squares);
    }
  }
  squares = block_sum(squares, shared);
  const float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
#pragma unroll
  for (u32 j = 0; j < EACH; ++j) {
    const u32 i = threadIdx.x + j * THREADS;
    if (i < width) store(to + i, kept[j] * scale * weights[j]);
  }
  // Each thread reads what it wrote itself.
  for (u32 i = threadIdx.x + EACH * THREADS; i < width; i += THREADS) {
    store(to + i, hidden[i] * scale * to_float(weight[i]));
  }
}
