// Sets strays[tensor] to 1 where a piece of the tensor has an element that is NaN or infinite. Blocks along x take pieces.
#include "element.cuh"

// Elements of a tensor; the host lays it out.
struct Piece {
  const Element* elements;
  u32 count;
  u32 tensor;
};
static_assert(sizeof(Piece) == 16, "as the host lays it out");

constexpr u32 TOGETHER = 16 / sizeof(Element);

// What one load brings.
struct alignas(16) Line {
  Element of[TOGETHER];
};

KERNEL(256) find_strays(const Piece* pieces, u32* strays) {
  after_those_before();
  const Piece piece = pieces[blockIdx.x];
  const u32 lines = (u64)piece.elements % 16 == 0 ? piece.count / TOGETHER : 0;
  bool bad = false;
#pragma unroll 4
  for (u32 i = threadIdx.x; i < lines; i += blockDim.x) {
    const Line line = ((const Line*)piece.elements)[i];
#pragma unroll
    for (u32 e = 0; e < TOGETHER; ++e) bad = bad || !is_finite(to_float(line.of[e]));
  }
  for (u32 i = lines * TOGETHER + threadIdx.x; i < piece.count; i += blockDim.x) {
    bad = bad || !is_finite(to_float(piece.elements[i]));
  }
  if (bad) atomicOr(strays + piece.tensor, 1u);
}
