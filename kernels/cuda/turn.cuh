// One head of q, k or v between the fused projection and attention, in the registers of a warp: norm and rotation. The pair of
// element i is i + HEAD_DIM / 2.
#pragma once

#include "element.cuh"
#include "paging.cuh"
#include "reduce.cuh"

constexpr u32 HALF = HEAD_DIM / 2;
constexpr u32 PAIRS = (HALF + WARP - 1) / WARP;

struct Head {
  float first[PAIRS], second[PAIRS];
};

struct Angles {
  float cosine[PAIRS], sine[PAIRS];
};

// What `of` gives for each element.
template <class Of>
DEVICE Head take_head(Of of) {
  Head head;
#pragma unroll
  for (u32 j = 0; j < PAIRS; ++j) {
    const u32 i = threadIdx.x % WARP + j * WARP;
    head.first[j] = i < HALF ? of(i) : 0.0f;
    head.second[j] = i < HALF ? of(i + HALF) : 0.0f;
  }
  return head;
}

// Per position: the cosines of half a head, then the sines.
DEVICE Angles angles_at(const float* angles, u32 position) {
  const float* angle = angles + (u64)position * HEAD_DIM;
  Angles at;
#pragma unroll
  for (u32 j = 0; j < PAIRS; ++j) {
    const u32 i = threadIdx.x % WARP + j * WARP;
    at.cosine[j] = i < HALF ? angle[i] : 0.0f;
    at.sine[j] = i < HALF ? angle[i + HALF] : 0.0f;
  }
  return at;
}

DEVICE void norm_head(Head& head, const Element* weight, float epsilon) {
  float squares = 0.0f;
#pragma unroll
  for (u32 j = 0; j < PAIRS; ++j) {
    squares = fmaf(head.first[j], head.first[j], squares);
    squares = fmaf(head.second[j], head.second[j], squares);
  }
  squares = warp_sum(squares);
  const float inverse = 1.0f / sqrtf(squares / (float)HEAD_DIM + epsilon);
#pragma unroll
  for (u32 j = 0; j < PAIRS; ++j) {
    const u32 i = threadIdx.x % WARP + j * WARP;
    if (i >= HALF) continue;
    head.first[j] *= inverse * to_float(weight[i]);
    head.second[j] *= inverse * to_float(weight[i + HALF]);
  }
}

// Rotates, and scales by `factor`.
DEVICE void turn_head(Head& head, const Angles& by, float factor) {
#pragma unroll
  for (u32 j = 0; j < PAIRS; ++j) {
    const float a = head.first[j], b = head.second[j];
    head.first[j] = (a * by.cosine[j] - b * by.sine[j]) * factor;
    head.second[j] = (b * by.cosine[j] + a * by.sine[j]) * factor;
  }
}

template <class Type>
DEVICE void store_head(Type* to, const Head& head) {
#pragma unroll
  for (u32 j = 0; j < PAIRS; ++j) {
    const u32 i = threadIdx.x % WARP + j * WARP;
    if (i >= HALF) continue;
    store(to + i, head.first[j]);
    store(to + i + HALF, head.second[j]);
  }
}
