// Every kernel of one element type and head, and a call that runs one by its name.
#include "attention.cuh"
#include "element.cuh"
#include "exponential.cuh"
#include "philox.cuh"
#include "product.cuh"
#include "reduce.cuh"
#include "tensor_core.cuh"
#include "turn.cuh"

#include <functional>
#include <utility>

// A namespace for each file, for their constants have the same names.
namespace attention {
#if ELEMENT_BF16
#include "attention_bf16.cu"
#else
#include "attention_f32.cu"
#endif
} // namespace attention
namespace attention_merge {
#include "attention_merge.cu"
}
namespace blocks {
#include "blocks.cu"
}
namespace embedding {
#include "embedding.cu"
}
namespace strays {
#include "finite.cu"
}
namespace multiply_own {
#if ELEMENT_BF16
#include "multiply_bf16.cu"
#else
#include "multiply_f32.cu"
#endif
} // namespace multiply_own
#if ELEMENT_BF16
namespace multiply_stream {
#include "multiply_few.cu"
}
#endif
namespace norm {
#include "norm.cu"
}
namespace rotary {
#include "rotary.cu"
}
namespace sampling {
#include "sampling.cu"
}
namespace swiglu_own {
#include "swiglu.cu"
}

namespace emulator {
void run(Dim3 blocks, Dim3 threads, const std::function<void()>& kernel);
}

namespace {

template <class... Parameters, size_t... I>
std::function<void()> bound(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  return [=] { kernel(*(Parameters*)arguments[I]...); };
}

template <class... Parameters>
std::function<void()> bound(void (*kernel)(Parameters...), void** arguments) {
  return bound(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

std::function<void()> find(const char* name, void** arguments) {
#define IS(space, kernel) \
  if (!strcmp(name, #kernel)) return bound(space::kernel, arguments)
  IS(attention, attend_decode);
  IS(attention, attend_prefill);
  IS(attention_merge, merge_splits);
  IS(blocks, copy_blocks);
  IS(embedding, embed);
  IS(strays, find_strays);
#if ELEMENT_BF16
  IS(multiply_stream, multiply_few);
  IS(multiply_stream, multiply_some);
  IS(multiply_own, multiply_more);
  IS(multiply_own, multiply_many);
  IS(multiply_own, multiply_whole);
  IS(multiply_stream, gate_few);
  IS(multiply_stream, gate_some);
  IS(multiply_own, gate_more);
  IS(multiply_own, gate_many);
#else
  IS(multiply_own, multiply);
#endif
  IS(norm, rms_norm);
  IS(rotary, turn_heads);
  IS(sampling, draw_tokens);
  IS(sampling, survey_logits);
  IS(sampling, weigh_logits);
  IS(swiglu_own, swiglu);
  return nullptr;
}

} // namespace

// Runs kernel `name`; each argument is where its value lies. Returns 0 when there is no such kernel.
extern "C" int emulate(const char* name, const u32* blocks, u32 threads, void** arguments) {
  const std::function<void()> kernel = find(name, arguments);
  if (!kernel) return 0;
  emulator::run(Dim3{blocks[0], blocks[1], blocks[2]}, Dim3{threads, 1, 1}, kernel);
  return 1;
}

// For tests of the numbers alone.
extern "C" void philox_words(const u32* counter, const u32* key, u32* to) {
  const Words words = philox(Words{{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  for (u32 i = 0; i < 4; ++i) to[i] = words.at[i];
}
extern "C" float exponential_of(float x) { return exponential(x); }
extern "C" u32 bf16_of(float x) { return bf16_bits(x); }
extern "C" u32 fp8_of(float x) { return fp8_bits(x); }
