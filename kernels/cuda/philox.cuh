// Philox4x32-10 (Salmon et al., SC'11), word for word as src/rng.rs has it.
#pragma once

#include "device.cuh"

struct Words {
  u32 at[4];
};

DEVICE Words philox(Words counter, u32 key0, u32 key1) {
  u32 c0 = counter.at[0], c1 = counter.at[1], c2 = counter.at[2], c3 = counter.at[3];
  for (u32 round = 0; round < 10; ++round) {
    if (round > 0) {
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const u64 product0 = (u64)0xD2511F53u * c0;
    const u64 product1 = (u64)0xCD9E8D57u * c2;
    c0 = (u32)(product1 >> 32) ^ c1 ^ key0;
    c1 = (u32)product1;
    c2 = (u32)(product0 >> 32) ^ c3 ^ key1;
    c3 = (u32)product0;
  }
  return Words{{c0, c1, c2, c3}};
}

// 53 random bits, those of RngKey::uniform_f64.
DEVICE u64 uniform_bits(const Draw& draw) {
  const Words counter = {{draw.counter, draw.purpose, (u32)draw.episode, (u32)(draw.episode >> 32)}};
  const Words words = philox(counter, (u32)draw.seed, (u32)(draw.seed >> 32));
  return ((u64)words.at[0] << 32 | words.at[1]) >> 11;
}
