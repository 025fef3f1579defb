// Grouped-query attention in f32, without tensor cores: a warp takes one query after the other, a lane one position's
// score and every 32nd element of the head's output.
#include "attention.cuh"

constexpr u32 EACH = (HEAD_DIM + WARP - 1) / WARP;

struct Fold {
  Share share;
  float out[EACH];
};

DEVICE void clear(Fold& fold) {
  fold.share = Share{MINUS_INFINITY, 0.0f};
  for (u32 j = 0; j < EACH; ++j) fold.out[j] = 0.0f;
}

// The split's positions below `sees`.
DEVICE void fold_split(Fold& fold, const Attention& what, const Row& row, const float* query, u32 kv_head, u32 split,
                       u32 sees) {
  clear(fold);
  const u32 lane = threadIdx.x % WARP;
  const u32 from = split * SPLIT, to = min(from + SPLIT, sees);
  for (u32 chunk = from; chunk < to; chunk += CHUNK) {
    float score = MINUS_INFINITY;
    if (chunk + lane < to) {
      const float* key = page_of(what, row, 0, kv_head, chunk + lane);
      score = 0.0f;
      for (u32 i = 0; i < HEAD_DIM; ++i) score = fmaf(query[i], key[i], score);
    }
    const float most = fmaxf(fold.share.most, warp_max(score));
    const float weight = exponential(score - most);
    const float correction = exponential(fold.share.most - most);
    // The lane's own part of the sum.
    fold.share = Share{most, fmaf(fold.share.sum, correction, weight)};
    for (u32 j = 0; j < EACH; ++j) fold.out[j] *= correction;
    for (u32 k = 0; k < min(CHUNK, to - chunk); ++k) {
      const float weight_k = __shfl_sync(WHOLE_WARP, weight, k);
      const float* value = page_of(what, row, 1, kv_head, chunk + k);
      for (u32 j = 0; j < EACH; ++j) {
        const u32 i = lane + j * WARP;
        if (i < HEAD_DIM) fold.out[j] = fmaf(weight_k, value[i], fold.out[j]);
      }
    }
  }
  fold.share.sum = warp_sum(fold.share.sum);
}

// Blocks along x take tiles, along y KV heads.
KERNEL(128) attend_prefill(const u32* count, const Tile* tiles, Attention what, Element* out) {
  after_those_before();
  if (blockIdx.x >= *count) return;
  const Tile tile = tiles[blockIdx.x];
  const Row row = what.rows[tile.row];
  const u32 lane = threadIdx.x % WARP, kv_head = blockIdx.y;
  const u32 group = what.heads / what.paging.kv_heads;
  const u32 end = min(tile.first + PREFILL_QUERIES, row.tokens * group);
  for (u32 query = tile.first + threadIdx.x / WARP; query < end; query += blockDim.x / WARP) {
    const u64 at = query_at(what, row, kv_head, query);
    const u32 sees = row.start + query / group + 1;
    Fold total, fold;
    clear(total);
    for (u32 split = 0; split * SPLIT < sees; ++split) {
      fold_split(fold, what, row, what.queries + at, kv_head, split, sees);
      const Factors factors = merge(total.share, fold.share);
      for (u32 j = 0; j < EACH; ++j) total.out[j] = blend(factors, total.out[j], fold.out[j]);
    }
    const float scale = 1.0f / total.share.sum;
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
      const u32 i = lane + j * WARP;
      if (i < HEAD_DIM) out[at + i] = total.out[j] * scale;
    }
  }
}

// Blocks along x take rows of one token, along y KV heads and every 16 heads of their groups, along z splits.
KERNEL(32) attend_decode(const u32* count, Attention what, Share* shares, float* partial) {
  after_those_before();
  if (blockIdx.x >= *count) return;
  const Row row = what.rows[blockIdx.x];
  const u32 sees = row.start + 1, split = blockIdx.z;
  if (split * SPLIT >= sees) return;
  const u32 lane = threadIdx.x % WARP;
  const u32 group = what.heads / what.paging.kv_heads;
  const u32 kv_head = blockIdx.y % what.paging.kv_heads;
  const u32 first = blockIdx.y / what.paging.kv_heads * QUERIES;
  for (u32 query = first; query < min(first + QUERIES, group); ++query) {
    Fold fold;
    fold_split(fold, what, row, what.queries + query_at(what, row, kv_head, query), kv_head, split, sees);
    const u64 at = ((u64)blockIdx.x * what.heads + kv_head * group + query) * gridDim.z + split;
    if (lane == 0) shares[at] = fold.share;
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
      const u32 i = lane + j * WARP;
      if (i < HEAD_DIM) partial[at * HEAD_DIM + i] = fold.out[j];
    }
  }
}
