// Whole-block copies: pairs[2·c] to pairs[2·c + 1]. Blocks along z take layers, `layer_words` words each, along y copies,
// along x words of a layer's share of a block. The host gives no pair whose blocks another pair of the same launch touches.
#include "device.cuh"

KERNEL(256) copy_blocks(const u32* count, const u32* pairs, u32* pool, u64 block_words, u64 layer_words) {
  after_those_before();
  if (blockIdx.y >= *count) return;
  pool += blockIdx.z * layer_words;
  const u32* from = pool + pairs[2 * blockIdx.y] * block_words;
  u32* to = pool + pairs[2 * blockIdx.y + 1] * block_words;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < block_words; i += (u64)gridDim.x * blockDim.x) {
    to[i] = from[i];
  }
}
