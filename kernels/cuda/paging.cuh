// Where keys and values lie: [block][layer][keys, values][KV head][position in the block][element of the head].
#pragma once

#include "device.cuh"

struct Paging {
  u32 layers;
  u32 kv_heads;
  u32 block_tokens;
};

// Element 0 of the keys (`which` 0) or values (1) of a position.
DEVICE u64 paged(const Paging& paging, u32 layer, u32 which, u32 kv_head, u32 block, u32 slot) {
  const u64 page = (((u64)block * paging.layers + layer) * 2 + which) * paging.kv_heads + kv_head;
  return (page * paging.block_tokens + slot) * HEAD_DIM;
}
