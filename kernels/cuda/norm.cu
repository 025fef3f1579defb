// hidden[row] += the sums of a product, part after part; to[r] = hidden[rows[r]] / rms · weight (without `rows`:
// hidden[r]). One block a row.
#include "element.cuh"
#include "reduce.cuh"

KERNEL(256) rms_norm(const u32* count, const u32* rows, float* hidden, const float* sums, u32 parts, u64 apart,
                     const Element* weight, Element* to, u32 width, float epsilon) {
  __shared__ float shared[8];
  after_those_before();
  if (blockIdx.x >= *count) return;
  const u64 row = rows ? rows[blockIdx.x] : blockIdx.x;
  hidden += row * width;
  sums += row * width;
  to += (u64)blockIdx.x * width;
  float squares = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
    float x = hidden[i];
    if (parts > 0) {
      float sum = sums[i];
#pragma unroll 4
      for (u32 part = 1; part < parts; ++part) sum += sums[part * apart + i];
      x += sum;
      hidden[i] = x;
    }
    squares = fmaf(x, x, squares);
  }
  squares = block_sum(squares, shared);
  const float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
  // Each thread reads what it wrote itself.
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) store(to + i, hidden[i] * scale * to_float(weight[i]));
}
