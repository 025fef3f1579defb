// to = silu(gate) · up; a row of gate_up holds `ffn` gates, then `ffn` ups. Blocks along x take elements, along y rows.
#include "element.cuh"
#include "exponential.cuh"

constexpr u32 EACH = 4; // elements of a thread whose loads are under way together; products.rs knows

KERNEL(256) swiglu(const u32* count, const float* gate_up, Element* to, u32 ffn) {
  const u32 row = blockIdx.y, first = blockIdx.x * blockDim.x * EACH + threadIdx.x;
  const bool there = row < *count;
  after_those_before();
  if (!there) return;
  gate_up += (u64)row * 2 * ffn;
  to += (u64)row * ffn;
  float gate[EACH], up[EACH];
#pragma unroll
  for (u32 j = 0; j < EACH; ++j) {
    const u32 i = first + j * blockDim.x;
    gate[j] = i < ffn ? gate_up[i] : 0.0f;
    up[j] = i < ffn ? gate_up[ffn + i] : 0.0f;
  }
#pragma unroll
  for (u32 j = 0; j < EACH; ++j) {
    const u32 i = first + j * blockDim.x;
    if (i < ffn) store(to + i, gate[j] / (1.0f + exponential(-gate[j])) * up[j]);
  }
}
