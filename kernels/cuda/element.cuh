// Conversions of elements.
#pragma once

#include "device.cuh"

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(Bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// To the nearest, ties to even; NaN stays NaN.
DEVICE u16 bf16_bits(float x) {
  const u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

DEVICE void store(float* to, float x) { *to = x; }
DEVICE void store(Bf16* to, float x) { to->bits = bf16_bits(x); }

// Two elements in a register, the first in the lower half.
DEVICE u32 pack_bf16(float first, float second) {
  return (u32)bf16_bits(first) | (u32)bf16_bits(second) << 16;
}

DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
