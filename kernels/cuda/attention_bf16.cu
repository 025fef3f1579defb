// Grouped-query attention on tensor cores: scores and weighted sums by mma, the softmax between them in registers.
#include "attention.cuh"
#include "tensor_core.cuh"

// A head padded to whole fragments; rows of shared memory an odd number of 16 bytes apart.
constexpr u32 PADDED = (HEAD_DIM + 15) / 16 * 16;
constexpr u32 STRIDE = PADDED + 8;

constexpr u32 STAGES = 4; // chunks that are under way at once; launches.rs knows

struct Buffers {
  Bf16 keys[STAGES][CHUNK * STRIDE];
  Bf16 values[STAGES][CHUNK * STRIDE];
};

// 16 queries of a warp; a lane has the queries lane / 4 and that plus 8.
struct Queries {
  u32 fragments[PADDED / 16][4];
  u32 sees[2]; // positions
  bool second; // whether there are any above the first eight
  u32 limit;   // the largest `sees` of the warp
};

struct Fold {
  Share shares[2];
  float out[PADDED / 8][4];
};

DEVICE void clear(Fold& fold) {
  for (u32 r = 0; r < 2; ++r) fold.shares[r] = Share{MINUS_INFINITY, 0.0f};
  for (u32 d = 0; d < PADDED / 8; ++d) {
    for (u32 i = 0; i < 4; ++i) fold.out[d][i] = 0.0f;
  }
}

// The queries from `first` on; those from `end` on are not there, look at position 0 and are written nowhere.
DEVICE void take_queries(Queries& to, const Attention& what, const Row& row, u32 kv_head, u32 first, u32 end) {
  const u32 lane = threadIdx.x % WARP;
  const u32 group = what.heads / what.paging.kv_heads;
  to.second = first + QUERIES / 2 < end;
  to.limit = first < end ? row.start + (min(first + QUERIES, end) - 1) / group + 1 : 0;
  for (u32 r = 0; r < 2; ++r) {
    const u32 query = first + lane / 4 + r * 8;
    const bool there = query < end;
    to.sees[r] = there ? row.start + query / group + 1 : 1;
    const Element* from = what.queries + (there ? query_at(what, row, kv_head, query) : 0);
#pragma unroll
    for (u32 f = 0; f < PADDED / 16; ++f) {
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const u32 i = f * 16 + half * 8 + lane % 4 * 2;
        to.fragments[f][half * 2 + r] = there && i < HEAD_DIM ? (u32)from[i].bits | (u32)from[i + 1].bits << 16 : 0;
      }
    }
  }
}

// Begins to bring a chunk's keys and values; positions from `limit` on are 0, for nobody may have written them.
DEVICE void fetch(Buffers& to, u32 stage, const Attention& what, const Row& row, u32 kv_head, u32 chunk, u32 limit) {
  constexpr u32 PARTS = PADDED / 8;
  static_assert(CHUNK == WARP, "a lane finds the page of one position for its warp");
  const u32 own = chunk + threadIdx.x % WARP;
  const u64 page = own < limit ? page_of(what, row, 0, kv_head, own) - what.pool : 0;
  const u64 to_values_too = (u64)what.paging.kv_heads * what.paging.block_tokens * HEAD_DIM;
  // A multiple of a warp: all lanes go round as often.
  for (u32 i = threadIdx.x; i < CHUNK * PARTS; i += blockDim.x) {
    const u32 key = i / PARTS, part = i % PARTS * 8;
    const bool there = chunk + key < limit && part < HEAD_DIM;
    const Element* keys = what.pool + __shfl_sync(WHOLE_WARP, page, key) + (there ? part : 0);
    const Element* values = keys + (there ? to_values_too : 0);
    Bf16* to_keys = to.keys[stage] + key * STRIDE + part;
    Bf16* to_values = to.values[stage] + key * STRIDE + part;
    if (HEAD_DIM % 8 == 0) {
      copy_async(to_keys, keys, there);
      copy_async(to_values, values, there);
    } else {
      for (u32 e = 0; e < 8; ++e) {
        const bool inside = there && part + e < HEAD_DIM;
        to_keys[e] = inside ? keys[e] : Bf16{0};
        to_values[e] = inside ? values[e] : Bf16{0};
      }
    }
  }
}

DEVICE void fold_chunk(Fold& fold, const Queries& queries, const Bf16* keys, const Bf16* values, u32 chunk) {
  const u32 lane = threadIdx.x % WARP;
  float scores[CHUNK / 8][4] = {};
#pragma unroll
  for (u32 f = 0; f < PADDED / 16; ++f) {
#pragma unroll
    for (u32 pair = 0; pair < CHUNK / 16; ++pair) {
      u32 b[4];
      load_matrices(b, keys + (pair * 16 + lane / 16 * 8 + lane % 8) * STRIDE + f * 16 + lane / 8 % 2 * 8);
      multiply_add(scores[2 * pair], queries.fragments[f], b[0], b[1]);
      multiply_add(scores[2 * pair + 1], queries.fragments[f], b[2], b[3]);
    }
  }
#pragma unroll
  for (u32 r = 0; r < 2; ++r) {
    // Scores of queries that are not there go on as they are, to sums that go nowhere.
    if (r == 1 && !queries.second) continue;
    float most = fold.shares[r].most;
#pragma unroll
    for (u32 n = 0; n < CHUNK / 8; ++n) {
#pragma unroll
      for (u32 c = 0; c < 2; ++c) {
        float& score = scores[n][2 * r + c];
        if (chunk + n * 8 + lane % 4 * 2 + c >= queries.sees[r]) score = MINUS_INFINITY;
        most = fmaxf(most, score);
      }
    }
    most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, 1));
    most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, 2));
    // Where nothing was seen yet, minus infinity less itself would be NaN.
    const float base = most == MINUS_INFINITY ? 0.0f : most;
    const float correction = power_of_two((fold.shares[r].most - base) * LOG2_E);
    float sum = 0.0f;
#pragma unroll
    for (u32 n = 0; n < CHUNK / 8; ++n) {
#pragma unroll
      for (u32 c = 0; c < 2; ++c) {
        float& score = scores[n][2 * r + c];
        score = power_of_two((score - base) * LOG2_E);
        sum += score;
      }
    }
    // The lane's own part of the sum; `finish` adds the four lanes of a query.
    fold.shares[r] = Share{most, fmaf(fold.shares[r].sum, correction, sum)};
#pragma unroll
    for (u32 d = 0; d < PADDED / 8; ++d) {
      fold.out[d][2 * r] *= correction;
      fold.out[d][2 * r + 1] *= correction;
    }
  }
#pragma unroll
  for (u32 pair = 0; pair < CHUNK / 16; ++pair) {
    // What a lane has of two 16 × 8 results is what it gives of a 16 × 16 operand.
    const float(&low)[4] = scores[2 * pair];
    const float(&high)[4] = scores[2 * pair + 1];
    const u32 weights[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                            pack_bf16(high[2], high[3])};
#pragma unroll
    for (u32 f = 0; f < PADDED / 16; ++f) {
      u32 b[4];
      load_transposed(b, values + (pair * 16 + lane / 8 % 2 * 8 + lane % 8) * STRIDE + f * 16 + lane / 16 * 8);
      multiply_add(fold.out[2 * f], weights, b[0], b[1]);
      multiply_add(fold.out[2 * f + 1], weights, b[2], b[3]);
    }
  }
}

// The positions from `from` on, which begins a split, and below `to`, for all warps of the block; after each split `take`
// gets it, and the next one begins anew. Positions from `limit` on are nobody's.
template <class Take>
DEVICE void fold_splits(Fold& fold, const Queries& queries, const Attention& what, const Row& row, u32 kv_head, u32 from,
                        u32 to, u32 limit, Take take) {
  DYNAMIC_SHARED(shared);
  Buffers& buffers = *(Buffers*)shared;
  clear(fold);
  for (u32 stage = 0; stage + 1 < STAGES; ++stage) {
    if (from + stage * CHUNK < to) fetch(buffers, stage, what, row, kv_head, from + stage * CHUNK, limit);
    commit_copies();
  }
  u32 stage = 0;
  for (u32 chunk = from; chunk < to; chunk += CHUNK) {
    wait_copies<STAGES - 2>();
    // The chunk is there for all threads, and all are done with the stage that is filled next.
    __syncthreads();
    const u32 ahead = chunk + (STAGES - 1) * CHUNK;
    if (ahead < to) fetch(buffers, (stage + STAGES - 1) % STAGES, what, row, kv_head, ahead, limit);
    commit_copies();
    // A chunk that no query of the warp sees would change nothing.
    if (chunk < queries.limit) fold_chunk(fold, queries, buffers.keys[stage], buffers.values[stage], chunk);
    stage = (stage + 1) % STAGES;
    if ((chunk + CHUNK) % SPLIT != 0 && chunk + CHUNK < to) continue;
    for (u32 r = 0; r < 2; ++r) {
      float& sum = fold.shares[r].sum;
      sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
      sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
    }
    take(chunk / SPLIT);
    clear(fold);
  }
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
  const u32 limit = row.start + (end - 1) / group + 1;
  const u32 first = tile.first + threadIdx.x / WARP * QUERIES;
  Queries queries;
  take_queries(queries, what, row, kv_head, first, end);
  Fold total, fold;
  clear(total);
  fold_splits(fold, queries, what, row, kv_head, 0, limit, limit, [&](u32 split) {
    if (split * SPLIT >= queries.limit) return;
    for (u32 r = 0; r < 2; ++r) {
      const Factors factors = merge(total.shares[r], fold.shares[r]);
#pragma unroll
      for (u32 d = 0; d < PADDED / 8; ++d) {
        for (u32 c = 0; c < 2; ++c) {
          total.out[d][2 * r + c] = blend(factors, total.out[d][2 * r + c], fold.out[d][2 * r + c]);
        }
      }
    }
  });
  for (u32 r = 0; r < 2; ++r) {
    const u32 query = first + lane / 4 + r * 8;
    if (query >= end) continue;
    const float scale = 1.0f / total.shares[r].sum;
    Element* to = out + query_at(what, row, kv_head, query);
#pragma unroll
    for (u32 d = 0; d < PADDED / 8; ++d) {
      const u32 i = d * 8 + lane % 4 * 2;
      if (i >= HEAD_DIM) continue;
      store(to + i, total.out[d][2 * r] * scale);
      store(to + i + 1, total.out[d][2 * r + 1] * scale);
    }
  }
}

// Blocks along x take rows of one token, along y KV heads and every 16 heads of their groups, along z splits.
KERNEL(32) attend_decode(const u32* count, Attention what, Share* shares, float* partial) {
  after_those_before();
  if (blockIdx.x >= *count) return;
  const Row row = what.rows[blockIdx.x];
  const u32 limit = row.start + 1, split = blockIdx.z;
  if (split * SPLIT >= limit) return;
  const u32 lane = threadIdx.x % WARP;
  const u32 group = what.heads / what.paging.kv_heads;
  const u32 kv_head = blockIdx.y % what.paging.kv_heads;
  const u32 first = blockIdx.y / what.paging.kv_heads * QUERIES;
  Queries queries;
  take_queries(queries, what, row, kv_head, first, group);
  Fold fold;
  const u32 from = split * SPLIT;
  fold_splits(fold, queries, what, row, kv_head, from, min(from + SPLIT, limit), limit, [&](u32) {
    for (u32 r = 0; r < 2; ++r) {
      const u32 query = first + lane / 4 + r * 8;
      if (query >= group) continue;
      const u64 at = ((u64)blockIdx.x * what.heads + kv_head * group + query) * gridDim.z + split;
      if (lane % 4 == 0) shares[at] = fold.shares[r];
      float* to = partial + at * HEAD_DIM;
#pragma unroll
      for (u32 d = 0; d < PADDED / 8; ++d) {
        const u32 i = d * 8 + lane % 4 * 2;
        if (i >= HEAD_DIM) continue;
        to[i] = fold.out[d][2 * r];
        to[i + 1] = fold.out[d][2 * r + 1];
      }
    }
  });
}
