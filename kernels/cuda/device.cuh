// The words of the device that kernels use. Without a CUDA compiler, a test's emulator gives them their meaning.
#pragma once

#include "types.cuh"

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
// One block a multiprocessor is enough: with fewer registers some kernels would spill.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#else
#include "emulator.h"
#endif

constexpr u32 WARP = 32;
constexpr u32 WHOLE_WARP = 0xffffffffu;
