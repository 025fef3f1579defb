// From the fused projection, whose sums come in parts, to attention: adds them up and the bias, norms each head of q and k
// (where the model does), rotates them, scales q, and writes q for attention and k and v to their pages. A warp takes a head;
// blocks along x take tokens, along y four heads each, in the order q, k, v.
#include "turn.cuh"

KERNEL(128) turn_heads(const u32* count, const Token* tokens, const float* sums, u32 parts, u64 apart,
                       const Element* bias, const Element* q_norm, const Element* k_norm, float epsilon,
                       const float* angles, float scale, Element* queries, Stored* pool, Paging paging, u32 layer,
                       u32 heads) {
  const u32 token = blockIdx.x, all = heads + 2 * paging.kv_heads;
  const u32 head = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
  const bool is_q = head < heads, is_v = head >= heads + paging.kv_heads;
  const bool there = token < *count && head < all;
  const Token place = tokens[there ? token : 0];
  const Angles by = angles_at(angles, place.position);
  after_those_before();
  if (!there) return;
  sums += ((u64)token * all + head) * HEAD_DIM;
  Head of = take_head([&](u32 i) {
    float sum = sums[i];
#pragma unroll 4
    for (u32 part = 1; part < parts; ++part) sum += sums[part * apart + i];
    return bias ? sum + to_float(bias[head * HEAD_DIM + i]) : sum;
  });
  const Element* norm = is_q ? q_norm : k_norm;
  if (!is_v && norm) norm_head(of, norm, epsilon);
  if (!is_v) turn_head(of, by, is_q ? scale : 1.0f);
  const u32 kv_head = (head - heads) % paging.kv_heads;
  if (is_q) {
    store_head(queries + ((u64)token * heads + head) * HEAD_DIM, of);
  } else {
    store_head(pool + paged(paging, layer, is_v ? 1 : 0, kv_head, place.block, place.slot), of);
  }
}
