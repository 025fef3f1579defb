// Chunks of keys and values on their way from the pool to matrices of tensor cores.
#pragma once

#include "attention.cuh"
#include "tensor_core.cuh"

// A head padded to whole fragments. The eight rows of a matrix lie in different banks of shared memory: eight elements of a
// row trade places with others by the row's number where there are 64 or a multiple, else rows are an odd number of 16 bytes
// apart.
constexpr u32 PADDED = (HEAD_DIM + 15) / 16 * 16;
constexpr bool SWIZZLED = PADDED % 64 == 0;
constexpr u32 STRIDE = SWIZZLED ? PADDED : PADDED + 8;

// Where a key's elements from `element` on, a multiple of 8, lie.
DEVICE u32 place_of(u32 key, u32 element) { return key * STRIDE + (SWIZZLED ? element ^ key % 8 * 8 : element); }

// Where a lane's rows of the matrices of four fragments lie in a chunk; those of later ones are 64 elements on, those of other
// rows as many rows.
struct Pieces {
  u32 at[4];

  DEVICE_MEMBER u32 of(u32 pair, u32 fragment) const { return at[fragment % 4] + fragment / 4 * 64 + pair * 16 * STRIDE; }
};

DEVICE Pieces pieces_of(u32 key, u32 half) {
  Pieces pieces;
  for (u32 f = 0; f < 4; ++f) pieces.at[f] = place_of(key, f * 16 + half * 8);
  return pieces;
}

DEVICE Pieces pieces_of_keys() {
  const u32 lane = threadIdx.x % WARP;
  return pieces_of(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

DEVICE Pieces pieces_of_values() {
  const u32 lane = threadIdx.x % WARP;
  return pieces_of(lane / 8 % 2 * 8 + lane % 8, lane / 16);
}

// Chunks under way as they lie in the pool, COUNT of them, keys and values apart. Those in fp8 are made wide, one chunk's at a
// time, before matrices are loaded from them.
template <u32 COUNT>
struct Ring {
#if KV_FP8
  Fp8 stored[COUNT][2][CHUNK * PADDED];
  Bf16 wide[2][CHUNK * STRIDE];
#else
  Bf16 stored[COUNT][2][CHUNK * STRIDE];
#endif
};

struct alignas(16) Line {
  u32 words[4];
};

// Two numbers in fp8, of the bytes of `four` that `which` names for __byte_perm, as two in bf16. With sign, exponent and
// mantissa in their places they are 2^120 times too small, also those below the least exponent.
DEVICE u32 widen_pair(u32 four, u32 which) {
  const u32 pair = __byte_perm(four, 0, which);
  return multiply_pairs((pair & 0x00800080u) << 8 | (pair & 0x007f007fu) << 4, 0x7b807b80u);
}

// Where the keys of the lane's position of a chunk lie; of positions from `limit` on, anywhere.
DEVICE const Stored* page_at(const Attention& what, const Row& row, u32 kv_head, u32 chunk, u32 limit) {
  static_assert(CHUNK == WARP, "a lane finds the page of one position for its warp");
  const u32 own = chunk + threadIdx.x % WARP;
  return own < limit ? page_of(what, row, 0, kv_head, own) : what.pool;
}

// SIZE threads of whole warps, of which this is `index`, bring chunks, 16 bytes of a key or value at a time.
template <u32 SIZE>
struct Bringer {
  static constexpr u32 EACH = 16 / sizeof(Stored), PARTS = PADDED / EACH, COPIES = CHUNK * PARTS;
  static constexpr u32 TURNS = (COPIES + SIZE - 1) / SIZE;
  // Where a thread has the same part of each key, the places come again every eight keys.
  static constexpr bool EVEN = SIZE % PARTS == 0;
  static constexpr u32 STEP = EVEN ? SIZE / PARTS : 1, PLACES = !EVEN || STEP >= 8 ? 1 : 8 / STEP;
  u32 index, places[PLACES];

  DEVICE_MEMBER explicit Bringer(u32 own) : index(own) {
#pragma unroll
    for (u32 p = 0; p < PLACES; ++p) places[p] = place_of(own / PARTS + p * STEP, own % PARTS * EACH);
  }

  // Where the thread's part of a turn lies in a chunk: as it is looked up, or in fp8 one part after the other.
  DEVICE_MEMBER u32 place(u32 turn) const {
    const u32 i = index + turn * SIZE;
    if (KV_FP8) return i * EACH;
    return EVEN ? places[turn % PLACES] + turn / PLACES * PLACES * STEP * STRIDE : place_of(i / PARTS, i % PARTS * EACH);
  }

  // Begins to bring a chunk's keys and values, whose pages the lanes know; positions from `limit` on are 0, for nobody may
  // have written them. `between` is called after the keys.
  template <u32 COUNT, class Between>
  DEVICE_MEMBER void bring(Ring<COUNT>& ring, u32 stage, const Attention& what, const Stored* page, u32 chunk, u32 limit,
                           Between between) const {
    const u64 to_values_too = (u64)what.paging.kv_heads * what.paging.block_tokens * HEAD_DIM;
    const bool whole = chunk + CHUNK <= limit;
    const Stored* from[TURNS] = {};
#pragma unroll
    for (u32 turn = 0; turn < TURNS; ++turn) {
      const u32 i = index + turn * SIZE;
      if (COPIES % SIZE != 0 && i >= COPIES) continue; // whole warps
      from[turn] = (const Stored*)__shfl_sync(WHOLE_WARP, (u64)page, i / PARTS) + i % PARTS * EACH;
    }
#pragma unroll
    for (u32 turn = 0; turn < 2 * TURNS; ++turn) {
      if (turn == TURNS) between();
      const u32 values = turn >= TURNS ? 1 : 0, t = turn % TURNS;
      const u32 i = index + t * SIZE, key = i / PARTS, part = i % PARTS * EACH;
      if (COPIES % SIZE != 0 && i >= COPIES) continue;
      const bool there = (whole || chunk + key < limit) && (PADDED == HEAD_DIM || part < HEAD_DIM);
      const Stored* elements = from[t] + values * to_values_too;
      Stored* to = ring.stored[stage][values] + place(t);
      if (HEAD_DIM % EACH == 0) {
        copy_async(to, elements, there);
      } else {
        for (u32 e = 0; e < EACH; ++e) to[e] = there && part + e < HEAD_DIM ? elements[e] : Stored{0};
      }
    }
  }

  // Where matrices of a chunk's keys (`which` 0) or values (1) are loaded from, once all of the threads are through; the chunk
  // is there, and nobody loads from those of an earlier call.
  template <u32 COUNT>
  DEVICE_MEMBER const Bf16* matrices(Ring<COUNT>& ring, u32 stage, u32 which) const {
#if KV_FP8
#pragma unroll
    for (u32 turn = 0; turn < TURNS; ++turn) {
      const u32 i = index + turn * SIZE;
      if (COPIES % SIZE != 0 && i >= COPIES) continue;
      const Line from = *(const Line*)(ring.stored[stage][which] + i * EACH);
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        const u32* words = from.words + half * 2;
        *(Line*)(ring.wide[which] + place_of(i / PARTS, i % PARTS * EACH + half * 8)) =
            Line{{widen_pair(words[0], 0x4140), widen_pair(words[0], 0x4342), widen_pair(words[1], 0x4140),
                  widen_pair(words[1], 0x4342)}};
      }
    }
    return ring.wide[which];
#else
    return ring.stored[stage][which];
#endif
  }
};
