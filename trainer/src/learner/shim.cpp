// What tch lacks of a card's libtorch: loading it, a stream of its pool, and a cap on its memory. Compiled against
// libtorch's headers without CUDA; all that is CUDA's is reached through the registries that libc10_cuda enters itself
// into when it is loaded.
#include <ATen/Context.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

namespace {

constexpr c10::DeviceType CUDA = c10::DeviceType::CUDA;

// Runs `work`. If it throws, what it says goes to `fault`, of `room` bytes with the closing zero, and the result is 0.
template <typename Work>
int guarded(char* fault, size_t room, Work work) noexcept {
  try {
    work();
    return 1;
  } catch (const c10::Error& error) {
    std::snprintf(fault, room, "%s", error.what_without_backtrace());
  } catch (const std::exception& error) {
    std::snprintf(fault, room, "%s", error.what());
  } catch (...) {
    std::snprintf(fault, room, "%s", "an exception of an unknown type");
  }
  return 0;
}

c10::Stream stream_of(int8_t device, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(CUDA, device), id);
}

}  // namespace

extern "C" {

// Loads a library for good; its symbols are there for those loaded later.
int parl_load(const char* library, char* fault, size_t room) {
  if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) != nullptr) return 1;
  const char* why = dlerror();
  std::snprintf(fault, room, "%s", why != nullptr ? why : "the loader does not say why");
  return 0;
}

// A stream of libtorch's pool, by its id and CUDA's handle.
int parl_pool_stream(int8_t device, int64_t* id, uint64_t* handle, char* fault, size_t room) {
  return guarded(fault, room, [&] {
    const c10::impl::VirtualGuardImpl guard(CUDA);
    const c10::Stream stream = guard.getStreamFromGlobalPool(c10::Device(CUDA, device));
    *id = stream.id();
    *handle = reinterpret_cast<uint64_t>(guard.getStreamNativeHandle(stream));
  });
}

// Lets this thread's work on the device go by a stream.
int parl_use_stream(int8_t device, int64_t id, char* fault, size_t room) {
  return guarded(fault, room, [&] { c10::impl::VirtualGuardImpl(CUDA).exchangeStream(stream_of(device, id)); });
}

// The share of a card's memory that libtorch may take. It counts for devices that have not been used yet.
int parl_cap(double share, char* fault, size_t room) {
  return guarded(fault, room, [&] {
    c10::CachingAllocator::setAllocatorSettings("per_process_memory_fraction:" + std::to_string(share));
  });
}

// Lets tensor cores multiply what is f32, rounded to 11 bits: all that bf16 has, and more.
int parl_tensor_cores(char* fault, size_t room) {
  return guarded(fault, room, [] { at::globalContext().setAllowTF32CuBLAS(true); });
}

// Gives back to the driver what libtorch keeps of memory that is free.
int parl_empty_cache(char* fault, size_t room) {
  return guarded(fault, room, [&] {
    c10::DeviceAllocator* allocator = c10::getDeviceAllocator(CUDA);
    if (allocator->initialized()) allocator->emptyCache();
  });
}

}  // extern "C"
