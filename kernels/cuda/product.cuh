// What the kernels of products x · wᵀ share: x is [rows, inputs] and w [outputs, inputs] in bf16, sums are f32.
//
// An element's sum has one order, whatever the number of rows and the kernel: inputs come in segments, whose length is a
// matter of w's sizes alone; a segment is summed 16 inputs at a time in ascending order, and segments are added up in
// ascending order, by the kernel or by whoever reads its sums. So an element's bits depend on its own row and column alone.
#pragma once

#include "element.cuh"
#include "exponential.cuh"
#include "tensor_core.cuh"

struct alignas(8) Pair {
  float first, second;
};

struct Operands {
  const Bf16* x;
  const Bf16* w;
  u32 outputs; // rows of w; of a gated product half of them
  u32 inputs;

  // Copies of 16 bytes need rows that begin at multiples of it.
  DEVICE_MEMBER bool whole() const { return inputs % 8 == 0 && ((u64)x | (u64)w) % 16 == 0; }
};

// Threads that do something together: which of them this one is, and how many they are.
struct Crew {
  u32 index, size;
};

// Which row of w a tile has in a line. Plain: one after the other. Gated: w has `outputs` gates, then as many ups, and a
// tile eight gates and then their eight ups, so that one lane gets both sums of an element.
template <bool GATED>
DEVICE u32 row_of_w(u32 column0, u32 line, u32 outputs, bool& there) {
  const u32 column = GATED ? column0 + line / 16 * 8 + line % 8 : column0 + line;
  there = column < outputs;
  return GATED ? line % 16 / 8 * outputs + column : column;
}

// Begins to bring `depth` inputs (a multiple of 16) from `k0` on of `lines` rows; what lies outside of the matrix is 0. Rows
// of shared memory are 8 elements longer, an odd number of 16 bytes: the eight rows of a matrix lie in different banks.
template <class RowOf>
DEVICE void fetch(const Crew& crew, Bf16* to, const Bf16* from, u32 lines, u32 k0, u32 depth, u32 inputs, bool whole,
                  RowOf row_of) {
  const u32 stride = depth + 8;
  if (whole) {
    for (u32 i = crew.index; i < lines * (depth / 8); i += crew.size) {
      const u32 line = i / (depth / 8), k = i % (depth / 8) * 8;
      bool there = true;
      const u64 row = row_of(line, there);
      there = there && k0 + k < inputs;
      copy_async(to + line * stride + k, there ? from + row * inputs + k0 + k : from, there);
    }
  } else {
    for (u32 i = crew.index; i < lines * depth; i += crew.size) {
      const u32 line = i / depth, k = i % depth;
      bool there = true;
      const u64 row = row_of(line, there);
      there = there && k0 + k < inputs;
      to[line * stride + k] = there ? from[row * inputs + k0 + k] : Bf16{0};
    }
  }
}

// Two sums beside each other, of which those that the row has room for are stored.
DEVICE void store_pair(float* to, float first, float second, u32 width, u32 room) {
  if ((int)room <= 0) return;
  if (width % 2 == 0) {
    *(Pair*)to = Pair{first, second};
  } else {
    to[0] = first;
    if (room > 1) to[1] = second;
  }
}

// A lane's sums of 16 columns of w for a row: of a fragment's upper (`half` 0) or lower eight rows.
DEVICE void store_sums(float* y, u32 row, u32 column0, u32 half, const float (&sums)[2][4], u32 outputs) {
#pragma unroll
  for (u32 eight = 0; eight < 2; ++eight) {
    const u32 column = column0 + eight * 8 + threadIdx.x % 4 * 2;
    store_pair(y + (u64)row * outputs + column, sums[eight][half * 2], sums[eight][half * 2 + 1], outputs, outputs - column);
  }
}

// The same of eight gates and their ups: silu(gate) · up.
DEVICE void store_gated(Bf16* to, u32 row, u32 column0, u32 half, const float (&sums)[2][4], u32 outputs) {
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    const u32 column = column0 + threadIdx.x % 4 * 2 + i;
    if (column >= outputs) continue;
    const float gate = sums[0][half * 2 + i], up = sums[1][half * 2 + i];
    store(to + (u64)row * outputs + column, gate / (1.0f + exponential(-gate)) * up);
  }
}
