// to[r] = from[rows[r]] / rms · weight (without `rows`: from[r]). One block a row; the residual was added by the
// product that came before.
#include "element.cuh"
#include "reduce.cuh"

KERNEL(256) rms_norm(const u32* count, const u32* rows, const float* from, const Element* weight, Element* to,
                     u32 width, float epsilon) {
  __shared__ float sums[8];
  const u32 row = blockIdx.x;
  if (row >= *count) return;
  from += (u64)(rows ? rows[row] : row) * width;
  to += (u64)row * width;
  float squares = 0.0f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(from[i], from[i], squares);
  squares = block_sum(squares, sums);
  const float scale = 1.0f / sqrtf(squares / (float)width + epsilon);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) store(to + i, from[i] * scale * to_float(weight[i]));
}
