// Grouped-query attention on tensor cores: scores and weighted sums by mma, the softmax between them in registers.
#include "chunks.cuh"
#include "turn.cuh"

// Chunks that are under way at once, in prefill for a block, in decode for each warp; launches.rs knows.
constexpr u32 STAGES = 4, DECODE_STAGES = 3;
constexpr u32 PREFILL_THREADS = 128;

// 16 queries of a warp; a lane has the queries lane / 4 and that plus 8.
struct Queries {
  u32 fragments[PADDED / 16][4];
  u32 sees[2]; // positions
  u32 all_see; // what all queries of the warp that are there see
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

// The queries from `first` on; those from `end` on are not there, look at position 0 and are written nowhere. `of` tells where
// one lies.
template <class Of>
DEVICE void take_queries(Queries& to, const Attention& what, const Row& row, u32 first, u32 end, Of of) {
  const u32 lane = threadIdx.x % WARP;
  const u32 group = what.heads / what.paging.kv_heads;
  to.second = first + QUERIES / 2 < end;
  to.all_see = row.start + first / group + 1;
  to.limit = first < end ? row.start + (min(first + QUERIES, end) - 1) / group + 1 : 0;
  for (u32 r = 0; r < 2; ++r) {
    const u32 query = first + lane / 4 + r * 8;
    const bool there = query < end;
    to.sees[r] = there ? row.start + query / group + 1 : 1;
    const Element* from = of(there ? query : first);
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

// A chunk's scores: a lane has those of its two queries.
typedef float Scores[CHUNK / 8][4];

DEVICE void score_chunk(Scores& scores, const Queries& queries, const Bf16* keys, const Pieces& pieces) {
#pragma unroll
  for (u32 n = 0; n < CHUNK / 8; ++n) {
    for (u32 i = 0; i < 4; ++i) scores[n][i] = 0.0f;
  }
#pragma unroll
  for (u32 f = 0; f < PADDED / 16; ++f) {
#pragma unroll
    for (u32 pair = 0; pair < CHUNK / 16; ++pair) {
      u32 b[4];
      load_matrices(b, keys + pieces.of(pair, f));
      multiply_add(scores[2 * pair], queries.fragments[f], b[0], b[1]);
      multiply_add(scores[2 * pair + 1], queries.fragments[f], b[2], b[3]);
    }
  }
}

// Takes a chunk's scores and values into the fold; the scores become weights.
DEVICE void take_chunk(Fold& fold, Scores& scores, const Queries& queries, const Bf16* values, const Pieces& pieces,
                       u32 chunk) {
  const u32 lane = threadIdx.x % WARP;
  const bool all = chunk + CHUNK <= queries.all_see;
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
        if (!all && chunk + n * 8 + lane % 4 * 2 + c >= queries.sees[r]) score = MINUS_INFINITY;
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
      load_transposed(b, values + pieces.of(pair, f));
      multiply_add(fold.out[2 * f], weights, b[0], b[1]);
      multiply_add(fold.out[2 * f + 1], weights, b[2], b[3]);
    }
  }
}

// Adds the lanes' parts of each query's sum.
DEVICE void finish(Fold& fold) {
  for (u32 r = 0; r < 2; ++r) {
    float& sum = fold.shares[r].sum;
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
  }
}

// The positions below `limit`, by all warps of the block; after each split `take` gets it, and the next one begins anew.
template <class Take>
DEVICE void fold_splits(Fold& fold, const Queries& queries, const Attention& what, const Row& row, u32 kv_head, u32 limit,
                        Take take) {
  DYNAMIC_SHARED(shared);
  Ring<STAGES>& ring = *(Ring<STAGES>*)shared;
  const Pieces of_keys = pieces_of_keys(), of_values = pieces_of_values();
  const Bringer<PREFILL_THREADS> bringer(threadIdx.x);
  const auto bring = [&](u32 stage, u32 chunk) {
    bringer.bring(ring, stage, what, page_at(what, row, kv_head, chunk, limit), chunk, limit, [] {});
  };
  clear(fold);
  for (u32 stage = 0; stage + 1 < STAGES; ++stage) {
    if (stage * CHUNK < limit) bring(stage, stage * CHUNK);
    commit_copies();
  }
  u32 stage = 0;
  for (u32 chunk = 0; chunk < limit; chunk += CHUNK) {
    wait_copies<STAGES - 2>();
    // The chunk is there for all threads, and all are done with the stage that is filled next.
    __syncthreads();
    const u32 ahead = chunk + (STAGES - 1) * CHUNK;
    if (ahead < limit) bring((stage + STAGES - 1) % STAGES, ahead);
    commit_copies();
    const Bf16 *keys = bringer.matrices(ring, stage, 0), *values = bringer.matrices(ring, stage, 1);
    if (KV_FP8) __syncthreads();
    // A chunk that no query of the warp sees would change nothing.
    if (chunk < queries.limit) {
      Scores scores;
      score_chunk(scores, queries, keys, of_keys);
      take_chunk(fold, scores, queries, values, of_values, chunk);
    }
    stage = (stage + 1) % STAGES;
    if ((chunk + CHUNK) % SPLIT != 0 && chunk + CHUNK < limit) continue;
    finish(fold);
    take(chunk / SPLIT);
    clear(fold);
  }
}

// Blocks along x take tiles, along y KV heads.
KERNEL(128) attend_prefill(const u32* count, const Tile* tiles, Attention what, Element* out) {
  const bool there = blockIdx.x < *count;
  after_those_before();
  if (!there) return;
  const Tile tile = tiles[blockIdx.x];
  const Row row = what.rows[tile.row];
  const u32 lane = threadIdx.x % WARP, kv_head = blockIdx.y;
  const u32 group = what.heads / what.paging.kv_heads;
  const u32 end = min(tile.first + PREFILL_QUERIES, row.tokens * group);
  const u32 limit = row.start + (end - 1) / group + 1;
  const u32 first = tile.first + threadIdx.x / WARP * QUERIES;
  Queries queries;
  take_queries(queries, what, row, first, end,
               [&](u32 query) { return what.queries + query_at(what, row, kv_head, query); });
  Fold total, fold;
  clear(total);
  fold_splits(fold, queries, what, row, kv_head, limit, [&](u32 split) {
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

// What lies between the fused projection and attention, for rows of one token (`turn_heads` in rotary.cu does it for others).
struct Turn {
  const float* sums; // null: it is done
  u32 parts;
  u64 apart;
  const Element *bias, *q_norm, *k_norm;
  float epsilon, scale;
};

// Adds up a token's projection for a KV head: its group's queries, its keys and its values, `raw` has room for them.
DEVICE void add_up(float* raw, const Turn& turn, const Attention& what, u32 token, u32 kv_head) {
  const u32 group = what.heads / what.paging.kv_heads, all = what.heads + 2 * what.paging.kv_heads;
  const u32 elements = (group + 2) * HEAD_DIM;
  constexpr u32 EACH = 4; // elements of a thread whose loads are under way together
  for (u32 first = threadIdx.x; first < elements; first += EACH * blockDim.x) {
    u32 column[EACH];
    float sum[EACH], bias[EACH];
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
      const u32 e = min(first + j * blockDim.x, elements - 1), head = e / HEAD_DIM;
      const u32 row = head < group ? kv_head * group + head : what.heads + (head - group) * what.paging.kv_heads + kv_head;
      column[j] = row * HEAD_DIM + e % HEAD_DIM;
      sum[j] = turn.sums[(u64)token * all * HEAD_DIM + column[j]];
      bias[j] = turn.bias ? to_float(turn.bias[column[j]]) : 0.0f;
    }
#pragma unroll 4
    for (u32 part = 1; part < turn.parts; ++part) {
#pragma unroll
      for (u32 j = 0; j < EACH; ++j) sum[j] += turn.sums[part * turn.apart + (u64)token * all * HEAD_DIM + column[j]];
    }
#pragma unroll
    for (u32 j = 0; j < EACH; ++j) {
      const u32 e = first + j * blockDim.x;
      if (e < elements) raw[e] = turn.bias ? sum[j] + bias[j] : sum[j];
    }
  }
}

// Rows of one token. Blocks along x take rows, along y KV heads and every 16 heads of their groups, along z `each` splits. A
// block's warps take its splits in turn, each with chunks of its own under way; where a row's splits are all one block's, it
// merges them in ascending order and writes `out`, else `merge_splits` does.
KERNEL(256) attend_decode(const u32* count, Attention what, Share* shares, float* partial, Element* out, u32 each, u32 splits,
                          const Token* tokens, const float* sums, u32 parts, u64 apart, const Element* bias,
                          const Element* q_norm, const Element* k_norm, float epsilon, const float* angles, float scale,
                          Stored* pool) {
  const bool there = blockIdx.x < *count;
  const Row row = what.rows[there ? blockIdx.x : 0];
  const u32 limit = row.start + 1, all = row.start / SPLIT + 1;
  const u32 begin = blockIdx.z * each, end = min(begin + each, all);
  if (!there || begin >= end) {
    after_those_before();
    return;
  }
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  const u32 group = what.heads / what.paging.kv_heads, heads = min(QUERIES, group);
  const u32 kv_head = blockIdx.y % what.paging.kv_heads;
  const u32 first = blockIdx.y / what.paging.kv_heads * QUERIES, own = min(heads, group - first);

  DYNAMIC_SHARED(of_warps);
  Ring<DECODE_STAGES>* rings = (Ring<DECODE_STAGES>*)of_warps;
  Ring<DECODE_STAGES>& ring = rings[warp];
  float* folds = (float*)(rings + warps);                             // [warp][head][element]; before: what `add_up` gives
  float* totals = folds + max(warps * heads, heads + 2) * HEAD_DIM;     // [head][element]
  Share* fold_shares = (Share*)(totals + heads * HEAD_DIM);             // [warp][head]
  Share* total_shares = fold_shares + warps * heads;                    // [round % 2][head]
  Element* queries_here = (Element*)(total_shares + 2 * heads);         // [head][element]

  u32 ahead = (begin + warp) * SPLIT; // the chunk that is brought next
  const Stored* page = page_at(what, row, kv_head, ahead, limit);
  const Bringer<WARP> bringer(lane);
  // Keys and values are waited for apart.
  const auto bring = [&](u32 stage) {
    if (ahead < end * SPLIT && ahead < limit) {
      bringer.bring(ring, stage, what, page, ahead, limit, [] { commit_copies(); });
      ahead += CHUNK;
      if (ahead % SPLIT == 0) ahead += (warps - 1) * SPLIT;
      // Looked up now, there by the time it is asked for.
      page = page_at(what, row, kv_head, ahead, limit);
    } else {
      commit_copies();
    }
    commit_copies();
  };
  // Keys and values before the row's own are of earlier steps.
  u32 brought = 0;
  for (; brought + 1 < DECODE_STAGES && ahead + CHUNK <= row.start; ++brought) bring(brought);
  const Token token = tokens[row.first];
  const Angles by = angles_at(angles, token.position);
  after_those_before();

  const Element* queries_at = what.queries + query_at(what, row, kv_head, first);
  if (sums) {
    add_up(folds, Turn{sums, parts, apart, bias, q_norm, k_norm, epsilon, scale}, what, row.first, kv_head);
    __syncthreads();
    for (u32 head = warp; head < group + 2; head += warps) {
      Head of = take_head([&](u32 i) { return folds[head * HEAD_DIM + i]; });
      const bool is_q = head < group, is_v = head == group + 1;
      const Element* norm = is_q ? q_norm : k_norm;
      if (!is_v && norm) norm_head(of, norm, epsilon);
      if (!is_v) turn_head(of, by, is_q ? scale : 1.0f);
      if (is_q) {
        store_head(queries_here + head * HEAD_DIM, of);
      } else if (end == all) {
        store_head(pool + paged(what.paging, what.layer, is_v ? 1 : 0, kv_head, token.block, token.slot), of);
      }
    }
    queries_at = queries_here;
    __syncthreads();
  }
  for (; brought + 1 < DECODE_STAGES; ++brought) bring(brought);
  Queries queries;
  take_queries(queries, what, row, first, first + own, [&](u32 query) { return queries_at + (query - first) * HEAD_DIM; });

  // Copies under way when a chunk's keys must be there: its values, and what was brought after them.
  constexpr int AFTER_KEYS = 2 * (int)DECODE_STAGES - 3;
  const Pieces of_keys = pieces_of_keys(), of_values = pieces_of_values();
  Scores scores, next;
  wait_copies<AFTER_KEYS>();
  __syncwarp();
  const Bf16* keys = bringer.matrices(ring, 0, 0);
  if (KV_FP8) __syncwarp();
  score_chunk(scores, queries, keys, of_keys);
  u32 stage = 0, round = 0;
  for (u32 base = begin; base < end; base += warps, ++round) {
    const u32 split = base + warp;
    Fold fold;
    clear(fold);
    if (split < end) {
      for (u32 chunk = split * SPLIT; chunk < min((split + 1) * SPLIT, limit); chunk += CHUNK) {
        // All lanes are done with the stage that is filled next.
        __syncwarp();
        bring((stage + DECODE_STAGES - 1) % DECODE_STAGES);
        // The chunk's values are there for all lanes, and the next one's keys: its scores have nothing to do with this one's,
        // so neither waits for the other's multiplications. After the last chunk they are of what lies there, for nobody.
        wait_copies<AFTER_KEYS>();
        __syncwarp();
        const u32 then = (stage + 1) % DECODE_STAGES;
        keys = bringer.matrices(ring, then, 0);
        const Bf16* values = bringer.matrices(ring, stage, 1);
        if (KV_FP8) __syncwarp();
        score_chunk(next, queries, keys, of_keys);
        take_chunk(fold, scores, queries, values, of_values, chunk);
#pragma unroll
        for (u32 n = 0; n < CHUNK / 8; ++n) {
          for (u32 i = 0; i < 4; ++i) scores[n][i] = next[n][i];
        }
        stage = then;
      }
      finish(fold);
    }
    const bool alone = gridDim.z == 1;
    for (u32 r = 0; r < 2; ++r) {
      const u32 query = lane / 4 + r * 8;
      if (query >= own || split >= end) continue;
      const u64 at = ((u64)blockIdx.x * what.heads + kv_head * group + first + query) * splits + split;
      if (lane % 4 == 0) (alone ? fold_shares[warp * heads + query] : shares[at]) = fold.shares[r];
      float* to = alone ? folds + (warp * heads + query) * HEAD_DIM : partial + at * HEAD_DIM;
#pragma unroll
      for (u32 d = 0; d < PADDED / 8; ++d) {
        const u32 i = d * 8 + lane % 4 * 2;
        if (i >= HEAD_DIM) continue;
        to[i] = fold.out[d][2 * r];
        to[i + 1] = fold.out[d][2 * r + 1];
      }
    }
    if (!alone) continue;
    __syncthreads();
    const bool last = base + warps >= end;
    Element* to = out + ((u64)row.first * what.heads + kv_head * group + first) * HEAD_DIM;
    for (u32 e = threadIdx.x; e < own * HEAD_DIM; e += blockDim.x) {
      const u32 query = e / HEAD_DIM;
      Share total = round == 0 ? Share{MINUS_INFINITY, 0.0f} : total_shares[round % 2 * heads + query];
      float sum = round == 0 ? 0.0f : totals[e];
      for (u32 w = 0; w < min(warps, end - base); ++w) {
        const Factors factors = merge(total, fold_shares[w * heads + query]);
        sum = blend(factors, sum, folds[w * heads * HEAD_DIM + e]);
      }
      if (last) {
        store(to + e, sum * (1.0f / total.sum));
      } else {
        totals[e] = sum;
        if (e % HEAD_DIM == 0) total_shares[(round + 1) % 2 * heads + query] = total;
      }
    }
    __syncthreads();
  }
}
