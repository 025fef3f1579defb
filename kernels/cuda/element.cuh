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

// To the nearest, ties to even, and no further than 448; NaN too becomes 448, for it shows in what it came from.
DEVICE u8 fp8_bits(float x) {
  const u32 sign = __float_as_uint(x) >> 24 & 0x80u;
  const float size = fminf(fabsf(x), 448.0f);
  // Below 2^-6 numbers are multiples of 2^-9. Above, the exponent loses 120 of its bias, and 20 bits go.
  if (size < 0.015625f) return (u8)(sign | (u32)rintf(size * 512.0f));
  const u32 bits = __float_as_uint(size);
  return (u8)(sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3)));
}

DEVICE void store(float* to, float x) { *to = x; }
DEVICE void store(Bf16* to, float x) { to->bits = bf16_bits(x); }
DEVICE void store(Fp8* to, float x) { to->bits = fp8_bits(x); }

// Two elements in a register, the first in the lower half.
DEVICE u32 pack_bf16(float first, float second) {
  return (u32)bf16_bits(first) | (u32)bf16_bits(second) << 16;
}

DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
