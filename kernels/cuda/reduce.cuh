// Reductions in one fixed order, whatever else runs.
#pragma once

#include "device.cuh"

DEVICE float warp_sum(float x) {
  for (u32 apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, apart);
  return x;
}

DEVICE float warp_max(float x) {
  for (u32 apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, apart));
  return x;
}

// Of all threads of the block, known to all of them; `shared` holds a float for each warp.
DEVICE float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
  __syncthreads();
  float sum = 0.0f;
  for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) sum += shared[warp];
  __syncthreads();
  return sum;
}

DEVICE float block_max(float x, float* shared) {
  x = warp_max(x);
  if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
  __syncthreads();
  float most = shared[0];
  for (u32 warp = 1; warp < blockDim.x / WARP; ++warp) most = fmaxf(most, shared[warp]);
  __syncthreads();
  return most;
}
