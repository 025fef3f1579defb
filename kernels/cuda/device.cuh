// The words of the device that kernels use. Without a CUDA compiler, a test's emulator gives them their meaning.
#pragma once

#include "types.cuh"

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
// One block a multiprocessor is enough: with fewer registers some kernels would spill.
#define KERNEL(threads) CROWDED_KERNEL(threads, 1)
// So many blocks a multiprocessor, whose registers are shared out among them.
#define CROWDED_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
// As many bytes as the launch says.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) u8 name[]

// A card may begin a kernel while the one before it is still under way. Every thread waits here for what that one and
// all before it wrote, and only then lets the next kernel begin: before it waits, a kernel may read but what no kernel of
// the step writes (weights, the step's counts and records, keys and values of earlier steps), and should: a load takes as long
// as a small kernel. Every kernel calls this, whatever else it does.
static __device__ __forceinline__ void after_those_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#else
#include "emulator.h"
#endif

constexpr u32 WARP = 32;
constexpr u32 WHOLE_WARP = 0xffffffffu;
