// Merges the splits of decode attention, in ascending order. Blocks along x take rows of one token, along y heads.
#include "attention.cuh"

KERNEL(64) merge_splits(const u32* count, const Row* rows, const Share* shares, const float* partial, Element* out,
                        u32 splits) {
  const bool there = blockIdx.x < *count;
  const Row row = rows[there ? blockIdx.x : 0];
  after_those_before();
  if (!there) return;
  const u32 heads = gridDim.y;
  const u64 at = ((u64)blockIdx.x * heads + blockIdx.y) * splits;
  const u32 used = row.start / SPLIT + 1;
  Element* to = out + ((u64)row.first * heads + blockIdx.y) * HEAD_DIM;
  for (u32 i = threadIdx.x; i < HEAD_DIM; i += blockDim.x) {
    Share total = {MINUS_INFINITY, 0.0f};
    float sum = 0.0f;
    for (u32 split = 0; split < used; ++split) {
      const Factors factors = merge(total, shares[at + split]);
      sum = blend(factors, sum, partial[(at + split) * HEAD_DIM + i]);
    }
    store(to + i, sum * (1.0f / total.sum));
  }
}
