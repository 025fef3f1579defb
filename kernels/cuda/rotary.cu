// From the fused projection, whose sums come in parts, to attention: adds them up and the bias, norms each head of q and k (where the model does), rotates them (the pair of
// element i is i + HEAD_DIM / 2), scales q, and writes q for attention and k and v to their pages. A warp takes a head;
// blocks along x take tokens, along y four heads each, in the order q, k, v.
#include "element.cuh"
#include "paging.cuh"
#include "reduce.cuh"

constexpr u32 HALF = HEAD_DIM / 2;
constexpr u32 PAIRS = (HALF + WARP - 1) / WARP;

KERNEL(128) turn_heads(const u32* count, const Token* tokens, const float* sums, u32 parts, u64 apart,
                       const Element* bias, const Element* q_norm, const Element* k_norm, float epsilon,
                       const float* angles, float scale, Element* queries, Element* pool, Paging paging, u32 layer,
                       u32 heads) {
  after_those_before();
  const u32 token = blockIdx.x;
  const u32 head = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
  const u32 all = heads + 2 * paging.kv_heads;
  if (token >= *count || head >= all) return;
  const u32 lane = threadIdx.x % WARP;
  const bool is_q = head < heads, is_v = head >= heads + paging.kv_heads;
  sums += ((u64)token * all + head) * HEAD_DIM;
  const auto projected = [&](u32 i) {
    float sum = sums[i];
#pragma unroll 4
    for (u32 part = 1; part < parts; ++part) sum += sums[part * apart + i];
    return bias ? sum + to_float(bias[head * HEAD_DIM + i]) : sum;
  };

  float first[PAIRS], second[PAIRS];
  for (u32 j = 0; j < PAIRS; ++j) {
    const u32 i = lane + j * WARP;
    first[j] = i < HALF ? projected(i) : 0.0f;
    second[j] = i < HALF ? projected(i + HALF) : 0.0f;
  }
  const Element* norm = is_q ? q_norm : k_norm;
  if (!is_v && norm) {
    float squares = 0.0f;
    for (u32 j = 0; j < PAIRS; ++j) {
      squares = fmaf(first[j], first[j], squares);
      squares = fmaf(second[j], second[j], squares);
    }
    squares = warp_sum(squares);
    const float inverse = 1.0f / sqrtf(squares / (float)HEAD_DIM + epsilon);
    for (u32 j = 0; j < PAIRS; ++j) {
      const u32 i = lane + j * WARP;
      if (i >= HALF) continue;
      first[j] *= inverse * to_float(norm[i]);
      second[j] *= inverse * to_float(norm[i + HALF]);
    }
  }

  const Token& place = tokens[token];
  Element* to;
  if (is_q) {
    to = queries + ((u64)token * heads + head) * HEAD_DIM;
  } else {
    const u32 kv_head = (head - heads) % paging.kv_heads;
    to = pool + paged(paging, layer, is_v ? 1 : 0, kv_head, place.block, place.slot);
  }
  // Per position: the cosines of half a head, then the sines.
  const float* angle = angles + (u64)place.position * HEAD_DIM;
  const float factor = is_q ? scale : 1.0f;
  for (u32 j = 0; j < PAIRS; ++j) {
    const u32 i = lane + j * WARP;
    if (i >= HALF) continue;
    float a = first[j], b = second[j];
    if (!is_v) {
      const float cosine = angle[i], sine = angle[i + HALF];
      a = (first[j] * cosine - second[j] * sine) * factor;
      b = (second[j] * cosine + first[j] * sine) * factor;
    }
    store(to + i, a);
    store(to + i + HALF, b);
  }
}
