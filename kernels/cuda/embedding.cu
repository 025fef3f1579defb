// hidden[token] = table[id of the token], as floats. One block a token.
#include "element.cuh"

KERNEL(256) embed(const u32* count, const Token* tokens, const Element* table, float* hidden, u32 width) {
  const u32 token = blockIdx.x;
  const bool there = token < *count;
  after_those_before();
  if (!there) return;
  const Element* from = table + (u64)tokens[token].id * width;
  float* to = hidden + (u64)token * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) to[i] = to_float(from[i]);
}
