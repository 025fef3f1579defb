// The words of CUDA that the kernels use, for a plain C++ compiler: a block's threads are fibers that take turns, and
// whatever a warp does together is done over a slot for each lane. Blocks run one after the other.
#pragma once

#include <math.h>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#define DEVICE static inline
#define DEVICE_MEMBER inline
#define KERNEL(threads) extern "C" void
#define CROWDED_KERNEL(threads, blocks) extern "C" void
#define __shared__ static
#define DYNAMIC_SHARED(name) alignas(16) static u8 name[emulator::DYNAMIC]
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Dim3 {
  u32 x, y, z;
};

namespace emulator {
// Bytes of shared memory that a launch may ask for.
constexpr size_t DYNAMIC = 227 << 10;
extern Dim3 grid, block, block_index;
u32 thread();
// Waits for the threads of the block that have not ended.
void block_barrier();
// Gives `bytes` of this lane to its warp, waits for the others, and returns the place where lane 0's lie; lane i's are
// SLOT · i on. They stay until the warp's next meeting.
constexpr size_t SLOT = 64;
const u8* meet(const void* from, size_t bytes);

// Copies to shared memory that do not wait: in some launches they are made at once, in the others as late as they may be,
// when their group is waited for; what nobody waits for is never made.
void copy(void* to, const void* from, size_t bytes, bool there);
void close_group();
void wait_groups(size_t pending);

template <class T>
T of_lane(const u8* slots, u32 lane) {
  T value;
  memcpy(&value, slots + lane * SLOT, sizeof value);
  return value;
}
} // namespace emulator

#define gridDim emulator::grid
#define blockDim emulator::block
#define blockIdx emulator::block_index
#define threadIdx (Dim3{emulator::thread(), 0, 0})

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() {
  const u8 nothing = 0;
  emulator::meet(&nothing, 1);
}
inline void after_those_before() {} // Kernels run one after the other.

template <class T>
T __shfl_sync(u32, T value, u32 lane) {
  return emulator::of_lane<T>(emulator::meet(&value, sizeof value), lane % 32);
}
template <class T>
T __shfl_xor_sync(u32, T value, u32 apart) {
  return emulator::of_lane<T>(emulator::meet(&value, sizeof value), emulator::thread() % 32 ^ apart);
}
template <class T>
T __shfl_up_sync(u32, T value, u32 apart) {
  const u32 lane = emulator::thread() % 32;
  return emulator::of_lane<T>(emulator::meet(&value, sizeof value), lane < apart ? lane : lane - apart);
}
inline u32 __ballot_sync(u32, bool yes) {
  const u8* slots = emulator::meet(&yes, sizeof yes);
  u32 bits = 0;
  for (u32 lane = 0; lane < 32; ++lane) bits |= (u32)emulator::of_lane<bool>(slots, lane) << lane;
  return bits;
}

inline float power_of_two(float x) { return exp2f(x); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __uint_as_float(u32 bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline u32 __float_as_uint(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline u32 __byte_perm(u32 low, u32 high, u32 which) {
  const u64 bytes = low | (u64)high << 32;
  u32 found = 0;
  for (u32 i = 0; i < 4; ++i) found |= (u32)(bytes >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return found;
}
inline u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
template <class T>
T min(T a, T b) { return a < b ? a : b; }
template <class T>
T max(T a, T b) { return a < b ? b : a; }
inline u64 atomicAdd(u64* to, u64 more) { return (*to += more) - more; }
inline u32 atomicOr(u32* to, u32 more) {
  const u32 before = *to;
  *to |= more;
  return before;
}

// Below: what tensor_core.cuh says, by the tables of the PTX manual for mma.m16n8k16 and ldmatrix.

inline float widen(u32 bits) { return __uint_as_float(bits << 16); }

inline void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  struct Fragments {
    u32 of[6];
  };
  const u8* slots = emulator::meet(mine, sizeof mine);
  const u32 lane = emulator::thread() % 32;
  // The lane's two rows of a and two columns of b, inputs ascending.
  double rows[2][16], columns[2][16];
  for (u32 k = 0; k < 16; ++k) {
    const Fragments from_a = emulator::of_lane<Fragments>(slots, lane / 4 * 4 + k % 8 / 2);
    for (u32 r = 0; r < 2; ++r) rows[r][k] = widen(from_a.of[k / 8 * 2 + r] >> k % 2 * 16 & 0xffff);
    for (u32 c = 0; c < 2; ++c) {
      const Fragments from_b = emulator::of_lane<Fragments>(slots, (lane % 4 * 2 + c) * 4 + k % 8 / 2);
      columns[c][k] = widen(from_b.of[4 + k / 8] >> k % 2 * 16 & 0xffff);
    }
  }
  for (u32 i = 0; i < 4; ++i) {
    double sum = d[i]; // products of bf16 are exact in it
    for (u32 k = 0; k < 16; ++k) sum += rows[i / 2][k] * columns[i % 2][k];
    d[i] = (float)sum;
  }
}

inline void load_from(u32 (&to)[4], const Bf16* row, bool transposed) {
  const u8* slots = emulator::meet(&row, sizeof row);
  const u32 lane = emulator::thread() % 32;
  for (u32 matrix = 0; matrix < 4; ++matrix) {
    u32 pair = 0;
    for (u32 half = 0; half < 2; ++half) {
      const u32 line = transposed ? lane % 4 * 2 + half : lane / 4;
      const u32 place = transposed ? lane / 4 : lane % 4 * 2 + half;
      const Bf16* from = emulator::of_lane<const Bf16*>(slots, matrix * 8 + line);
      pair |= (u32)from[place].bits << half * 16;
    }
    to[matrix] = pair;
  }
}

// Of products that bf16 has room for: what would be rounded ends the program.
inline u32 multiply_pairs(u32 a, u32 b) {
  u32 pair = 0;
  for (u32 shift = 0; shift < 32; shift += 16) {
    const u32 bits = __float_as_uint(widen(a >> shift & 0xffff) * widen(b >> shift & 0xffff));
    if (bits & 0xffff) abort();
    pair |= bits >> 16 << shift;
  }
  return pair;
}

inline void load_matrices(u32 (&to)[4], const Bf16* row) { load_from(to, row, false); }
inline void load_transposed(u32 (&to)[4], const Bf16* row) { load_from(to, row, true); }

inline void copy_async(void* to, const void* from, bool there) { emulator::copy(to, from, 16, there); }
inline void commit_copies() { emulator::close_group(); }
template <int PENDING>
void wait_copies() {
  emulator::wait_groups(PENDING);
}
