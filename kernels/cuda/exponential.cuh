// e^x as src/cpu/math.rs computes it: range reduction by ln 2 in two parts, a polynomial of degree 6 (Cephes' expf).
#pragma once

#include "device.cuh"

#ifdef __CUDACC__
// 2^x by the multiprocessor's own unit: to about 2 ulp; 0 for minus infinity.
DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

constexpr float LOG2_E = 1.44269504f;

// To about 2 ulp; 0 below -87 (for minus infinity too), e^88 above 88.
DEVICE float exponential(float x) {
  const float c = fminf(fmaxf(x, -87.0f), 88.0f);
  const float n = rintf(c * 1.44269504f);
  float r = fmaf(n, -0.6933594f, c);
  r = fmaf(n, 2.1219444e-4f, r);
  float p = 1.9875691e-4f;
  p = fmaf(p, r, 1.3981999e-3f);
  p = fmaf(p, r, 8.333452e-3f);
  p = fmaf(p, r, 4.1665796e-2f);
  p = fmaf(p, r, 1.6666665e-1f);
  p = fmaf(p, r, 0.5f);
  const float y = fmaf(p, r * r, r + 1.0f);
  const float power = __uint_as_float((u32)((int)n + 127) << 23);
  return x < -87.0f ? 0.0f : y * power;
}
