// What the attention kernels of both element types share.
//
// Keys are taken in splits of a fixed number of positions, counted from the sequence's first. A split begins anew, and
// the splits are merged in ascending order: by the block itself in prefill, by `merge_splits` in decode, with the same
// operations. So a query's bits do not depend on the batch, on how a prefill is cut, or on which of the two it is.
#pragma once

#include "element.cuh"
#include "exponential.cuh"
#include "paging.cuh"
#include "reduce.cuh"

constexpr u32 SPLIT = 128;          // positions
constexpr u32 CHUNK = 32;           // positions that are looked at together
constexpr u32 QUERIES = 16;         // queries of a warp
constexpr u32 PREFILL_QUERIES = 64; // queries of a prefill block

#define MINUS_INFINITY __uint_as_float(0xff800000u)

struct Attention {
  const Element* queries; // [token][head][element], rotated and scaled
  const Stored* pool;
  const Row* rows;
  const u32* tables;
  Paging paging;
  u32 layer;
  u32 heads;
};
static_assert(sizeof(Attention) == 56, "as the host lays it out");

// A softmax under way: the largest score, and the sum of e^(score - largest).
struct Share {
  float most;
  float sum;
};

struct Factors {
  float before;
  float now;
};

// Takes a split into the total; the factors are those of what was summed before and in the split.
DEVICE Factors merge(Share& total, const Share& split) {
  const float most = fmaxf(total.most, split.most);
  const Factors factors = {exponential(total.most - most), exponential(split.most - most)};
  total.sum = fmaf(total.sum, factors.before, split.sum * factors.now);
  total.most = most;
  return factors;
}

DEVICE float blend(const Factors& factors, float total, float split) {
  return fmaf(total, factors.before, split * factors.now);
}

// Element 0 of a query: tokens of the row outer, heads of the KV head's group inner.
DEVICE u64 query_at(const Attention& what, const Row& row, u32 kv_head, u32 query) {
  const u32 group = what.heads / what.paging.kv_heads;
  const u64 token = row.first + query / group;
  return (token * what.heads + kv_head * group + query % group) * HEAD_DIM;
}

// Element 0 of a position's keys (`which` 0) or values (1).
DEVICE const Stored* page_of(const Attention& what, const Row& row, u32 which, u32 kv_head, u32 position) {
  const u32 block_tokens = what.paging.block_tokens;
  const u32 block = what.tables[row.table + position / block_tokens];
  return what.pool + paged(what.paging, what.layer, which, kv_head, block, position % block_tokens);
}
