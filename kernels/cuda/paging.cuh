// Where keys and values lie: [layer][block][keys, values][KV head][position in the block][element of the head]. What a
// layer's attention reads lies close together: with the layers of a block side by side it would take little of many pages
// of memory.
#pragma once

#include "device.cuh"

struct Paging {
  u32 blocks; // of the pool
  u32 kv_heads;
  u32 block_tokens;
};

// Element 0 of the keys (`which` 0) or values (1) of a position.
DEVICE u64 paged(const Paging& paging, u32 layer, u32 which, u32 kv_head, u32 block, u32 slot) {
  const u64 page = (((u64)layer * paging.blocks + block) * 2 + which) * paging.kv_heads + kv_head;
  return (page * paging.block_tokens + slot) * HEAD_DIM;
}
