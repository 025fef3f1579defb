// What the host and the kernels both know. The mirror in Rust is src/cuda/records.rs.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Bf16 {
  u16 bits;
};

// Four bits of exponent, three of mantissa (E4M3): up to 448, no infinities.
struct Fp8 {
  u8 bits;
};

// Weights and activations between products. Sums and the residual stream are float in both cases.
#if ELEMENT_BF16
typedef Bf16 Element;
#else
typedef float Element;
#endif

// Keys and values in the pool.
#if KV_FP8
typedef Fp8 Stored;
#else
typedef Element Stored;
#endif

// One input token.
struct Token {
  u32 id;
  u32 position; // in its sequence
  u32 block;    // where its keys and values go
  u32 slot;     // in the block
};

// One sequence's share of a plan.
struct Row {
  u32 first;  // its first token's place in the batch
  u32 tokens; // how many
  u32 start;  // position of the first
  u32 table;  // where its block table begins among all tables
};

// Consecutive queries of a row that a block of prefill attention takes; a query is a token and a head of a group.
struct Tile {
  u32 row;
  u32 first;
};

// How to draw after a token.
struct Draw {
  u64 seed;
  u64 episode;
  u32 purpose; // stream and agent, as rng.rs packs them
  u32 counter;
  float temperature; // 0 is greedy
  u32 top_k;         // 0 keeps all
  float top_p;       // 1 keeps all
  u32 unused;
};

struct Drawn {
  u32 id;
  float logprob;
  u32 finite; // 0: a logit was NaN or infinite, and nothing was drawn
  u32 unused;
};

static_assert(sizeof(Token) == 16 && sizeof(Row) == 16 && sizeof(Tile) == 8, "as the host lays them out");
static_assert(sizeof(Draw) == 40 && sizeof(Drawn) == 16, "as the host lays them out");
