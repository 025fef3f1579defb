// Sets *stray to 1 where one of `count` elements is NaN or infinite.
#include "element.cuh"

KERNEL(256) find_strays(const Element* elements, u64 count, u32* stray) {
  after_those_before();
  bool bad = false;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    bad = bad || !is_finite(to_float(elements[i]));
  }
  if (bad) atomicOr(stray, 1u);
}
