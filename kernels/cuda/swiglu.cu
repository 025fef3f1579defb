// to = silu(gate) · up; a row of gate_up holds `ffn` gates, then `ffn` ups. Blocks along x take elements, along y rows.
#include "element.cuh"
#include "exponential.cuh"

KERNEL(256) swiglu(const u32* count, const float* gate_up, Element* to, u32 ffn) {
  after_those_before();
  const u32 row = blockIdx.y;
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= *count || i >= ffn) return;
  const float gate = gate_up[(u64)row * 2 * ffn + i];
  const float up = gate_up[(u64)row * 2 * ffn + ffn + i];
  store(to + (u64)row * ffn + i, gate / (1.0f + exponential(-gate)) * up);
}
