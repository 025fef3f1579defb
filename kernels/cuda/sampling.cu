// Draws a token a row from its logits, as src/sampling.rs does: greedy, or by the inverse of the distribution
// function; over ids in ascending order, or where top_k or top_p truncate, over the likeliest first (ties: lower id).
//
// Probability mass is counted in whole units of 2^-44 of the likeliest token's: integer sums have no order, so no bit
// depends on how threads share the work. Nothing that could be drawn weighs less than a unit.
#include "element.cuh"
#include "exponential.cuh"
#include "philox.cuh"
#include "reduce.cuh"

constexpr u32 THREADS = 512, WARPS = THREADS / WARP, BINS = 256;
constexpr float UNITS = 17592186044416.0f; // 2^44

struct Distribution {
  const float* logits;
  u32 vocab;
  float largest;
  float scale; // 1 / temperature

  DEVICE_MEMBER float weight(u32 i) const { return exponential((logits[i] - largest) * scale); }
  DEVICE_MEMBER u32 bits(u32 i) const { return __float_as_uint(weight(i)); }
};

DEVICE u64 mass_of(u32 bits) { return (u64)(__uint_as_float(bits) * UNITS); }

struct Shared {
  float floats[WARPS];
  u64 bins[BINS];
  u64 segments[WARPS];
  u64 sum;
  u32 id;
};

// The sum over all ids.
template <class Measure>
DEVICE u64 total_of(u32 vocab, Shared& shared, Measure measure) {
  u64 own = 0;
  for (u32 i = threadIdx.x; i < vocab; i += THREADS) own += measure(i);
  if (threadIdx.x == 0) shared.sum = 0;
  __syncthreads();
  atomicAdd(&shared.sum, own);
  __syncthreads();
  const u64 sum = shared.sum;
  __syncthreads();
  return sum;
}

// The first id at which the running sum over ids in ascending order exceeds `target`, which is below the sum of all.
template <class Measure>
DEVICE u32 walk(u32 vocab, u64 target, Shared& shared, Measure measure) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 length = (vocab + THREADS - 1) / THREADS * WARP;
  const u32 from = min(warp * length, vocab), to = min(from + length, vocab);
  u64 own = 0;
  for (u32 i = from + lane; i < to; i += WARP) own += measure(i);
  for (u32 apart = WARP / 2; apart > 0; apart /= 2) own += __shfl_xor_sync(WHOLE_WARP, own, apart);
  if (lane == 0) shared.segments[warp] = own;
  __syncthreads();
  u64 before = 0;
  for (u32 w = 0; w < warp; ++w) before += shared.segments[w];
  if (before <= target && target < before + shared.segments[warp]) {
    for (u32 first = from; first < to; first += WARP) {
      u64 running = first + lane < to ? measure(first + lane) : 0;
      for (u32 apart = 1; apart < WARP; apart *= 2) {
        const u64 below = __shfl_up_sync(WHOLE_WARP, running, apart);
        if (lane >= apart) running += below;
      }
      const u32 past = __ballot_sync(WHOLE_WARP, before + running > target);
      if (past != 0) {
        if (lane == 0) shared.id = first + (u32)__ffs((int)past) - 1;
        break;
      }
      before += __shfl_sync(WHOLE_WARP, running, WARP - 1);
    }
  }
  __syncthreads();
  const u32 id = shared.id;
  __syncthreads();
  return id;
}

// A place in the order of the likeliest first.
struct Place {
  u32 bits;  // of the weight there
  u64 above; // sum of the measure over all heavier ids
};

// The first place at which the running sum exceeds `target`, which is below the sum of all: by the digits of the
// weights' bits (weights are not negative, so these rise with them), the largest digit first.
template <class Measure>
DEVICE Place select(const Distribution& row, u64 target, Shared& shared, Measure measure) {
  Place place = {0, 0};
  u32 known = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) shared.bins[bin] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < row.vocab; i += THREADS) {
      const u32 bits = row.bits(i);
      if ((bits & known) == place.bits) atomicAdd(&shared.bins[bits >> shift & 255], measure(bits));
    }
    __syncthreads();
    u32 digit = BINS - 1;
    while (digit > 0 && place.above + shared.bins[digit] <= target) place.above += shared.bins[digit--];
    place.bits |= digit << shift;
    known |= 255u << shift;
    __syncthreads();
  }
  return place;
}

// Truncates and draws.
DEVICE u32 draw_truncated(const Distribution& row, const Draw& draw, u64 mass, Shared& shared) {
  const auto one = [](u32) -> u64 { return 1; };
  const auto heavy = [](u32 bits) -> u64 { return mass_of(bits); };
  if (draw.top_k > 0 && draw.top_k < row.vocab) {
    const Place last = select(row, draw.top_k - 1, shared, one);
    const u64 heavier =
        total_of(row.vocab, shared, [&](u32 i) -> u64 { return row.bits(i) > last.bits ? mass_of(row.bits(i)) : 0; });
    mass = heavier + (draw.top_k - last.above) * mass_of(last.bits);
  }
  if (draw.top_p < 1.0f) {
    const u64 wanted = min(max((u64)ceil((double)draw.top_p * (double)mass), (u64)1), mass);
    const Place last = select(row, wanted - 1, shared, heavy);
    const u64 each = mass_of(last.bits);
    mass = last.above + ((wanted - 1 - last.above) / each + 1) * each;
  }
  const u64 target = __umul64hi(uniform_bits(draw) << 11, mass);
  const Place place = select(row, target, shared, heavy);
  const u64 ties_before = (target - place.above) / mass_of(place.bits);
  return walk(row.vocab, ties_before, shared, [&](u32 i) -> u64 { return row.bits(i) == place.bits; });
}

// One block a row.
KERNEL(512) draw_tokens(const u32* count, const float* logits, const Draw* draws, Drawn* drawn, u32 vocab) {
  __shared__ Shared shared;
  if (blockIdx.x >= *count) return;
  const Draw draw = draws[blockIdx.x];
  const bool greedy = draw.temperature == 0.0f;
  const float temperature = greedy ? 1.0f : draw.temperature;
  Distribution row = {logits + (u64)blockIdx.x * vocab, vocab, 0.0f, 1.0f / temperature};
  float largest = __uint_as_float(0xff800000u);
  for (u32 i = threadIdx.x; i < vocab; i += THREADS) largest = fmaxf(largest, row.logits[i]);
  row.largest = block_max(largest, shared.floats);
  if (total_of(vocab, shared, [&](u32 i) -> u64 { return !is_finite(row.logits[i]); }) > 0) {
    if (threadIdx.x == 0) drawn[blockIdx.x] = Drawn{0, 0.0f, 0, 0};
    return;
  }
  const u64 mass = total_of(vocab, shared, [&](u32 i) -> u64 { return mass_of(row.bits(i)); });
  u32 id;
  if (greedy) {
    id = walk(vocab, 0, shared, [&](u32 i) -> u64 { return row.logits[i] >= row.largest; });
  } else if ((draw.top_k == 0 || draw.top_k >= vocab) && draw.top_p >= 1.0f) {
    const u64 target = __umul64hi(uniform_bits(draw) << 11, mass);
    id = walk(vocab, target, shared, [&](u32 i) -> u64 { return mass_of(row.bits(i)); });
  } else {
    id = draw_truncated(row, draw, mass, shared);
  }
  if (threadIdx.x == 0) {
    const double scaled = (double)(row.logits[id] - row.largest) / (double)temperature;
    const double logprob = scaled - log((double)mass / (double)UNITS);
    drawn[blockIdx.x] = Drawn{id, (float)logprob, 1, 0};
  }
}
