// Draws a token a row from its logits, as src/sampling.rs does: greedy, or by the inverse of the distribution
// function; over ids in ascending order, or where top_k or top_p truncate, over the likeliest first (ties: lower id).
// A row is looked at in parts by many blocks, twice: for its largest logit, then for the mass of each part; so the block
// that draws looks at one part only, unless it must truncate.
//
// Probability mass is counted in whole units of 2^-44 of the likeliest token's: integer sums have no order, so no bit
// depends on how threads share the work. Nothing that could be drawn weighs less than a unit.
#include "element.cuh"
#include "exponential.cuh"
#include "philox.cuh"
#include "reduce.cuh"

constexpr u32 THREADS = 512, WARPS = THREADS / WARP, BINS = 256;
constexpr u32 PARTS = WARP; // of a row; launches.rs knows
constexpr float UNITS = 17592186044416.0f; // 2^44

struct Distribution {
  const float* logits;
  u32 vocab;
  float largest;
  float scale; // 1 / temperature

  // A weight's bits; 0 for a logit of minus infinity.
  DEVICE_MEMBER u32 bits_of(float logit) const { return __float_as_uint(exponential((logit - largest) * scale)); }
  DEVICE_MEMBER u32 bits(u32 i) const { return bits_of(logits[i]); }
};

DEVICE u64 mass_of(u32 bits) { return (u64)(__uint_as_float(bits) * UNITS); }

// What is known of a part of a row's logits.
struct Part {
  float largest;
  u32 finite;
  u64 mass;
};
static_assert(sizeof(Part) == 16, "as the host lays it out");

struct Range {
  u32 from, to;
};

DEVICE Range range_of(u32 part, u32 vocab) {
  const u32 length = (vocab + PARTS - 1) / PARTS;
  return Range{min(part * length, vocab), min(part * length + length, vocab)};
}

// A row as all that draw from it see it, by the parts that were looked at.
DEVICE Distribution distribution_of(const float* logits, const Draw& draw, u32 vocab, const Part* parts, u32 row) {
  const float largest = warp_max(parts[row * PARTS + threadIdx.x % WARP].largest);
  const float temperature = draw.temperature == 0.0f ? 1.0f : draw.temperature;
  return Distribution{logits + (u64)row * vocab, vocab, largest, 1.0f / temperature};
}

struct Shared {
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

// The first id of the range at which the running sum over ids in ascending order exceeds `target`, which is below the
// range's sum.
template <class Measure>
DEVICE u32 walk(const Range& range, u64 target, Shared& shared, Measure measure) {
  const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const u32 length = (range.to - range.from + THREADS - 1) / THREADS * WARP;
  const u32 from = min(range.from + warp * length, range.to), to = min(from + length, range.to);
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
  return walk(Range{0, row.vocab}, ties_before, shared, [&](u32 i) -> u64 { return row.bits(i) == place.bits; });
}

// Logits that a thread of LOOKERS has under way at once: all that it takes of a part of the largest vocabularies.
constexpr u32 LOOKERS = 256, AHEAD = 20;

DEVICE void load_ahead(float (&to)[AHEAD], const float* row, u32 first, u32 end, float beyond) {
#pragma unroll
  for (u32 j = 0; j < AHEAD; ++j) to[j] = first + j * LOOKERS < end ? row[first + j * LOOKERS] : beyond;
}

// Blocks along x take rows, along y parts.
KERNEL(256) survey_logits(const u32* count, const float* logits, Part* parts, u32 vocab) {
  __shared__ float shared[8];
  const bool there = blockIdx.x < *count;
  after_those_before();
  if (!there) return;
  const float* row = logits + (u64)blockIdx.x * vocab;
  const Range range = range_of(blockIdx.y, vocab);
  float largest = __uint_as_float(0xff800000u), strays = 0.0f;
  for (u32 first = range.from + threadIdx.x; first < range.to; first += AHEAD * LOOKERS) {
    float logits_here[AHEAD];
    load_ahead(logits_here, row, first, range.to, largest);
#pragma unroll
    for (u32 j = 0; j < AHEAD; ++j) {
      largest = fmaxf(largest, logits_here[j]);
      if (first + j * LOOKERS < range.to && !is_finite(logits_here[j])) strays = 1.0f;
    }
  }
  largest = block_max(largest, shared);
  strays = block_max(strays, shared);
  if (threadIdx.x == 0) parts[blockIdx.x * PARTS + blockIdx.y] = Part{largest, strays == 0.0f, 0};
}

// The same blocks.
KERNEL(256) weigh_logits(const u32* count, const float* logits, const Draw* draws, Part* parts, u32 vocab) {
  __shared__ u64 sums[8];
  const bool there = blockIdx.x < *count;
  after_those_before();
  if (!there) return;
  const Distribution row = distribution_of(logits, draws[blockIdx.x], vocab, parts, blockIdx.x);
  const Range range = range_of(blockIdx.y, vocab);
  u64 own = 0;
  for (u32 first = range.from + threadIdx.x; first < range.to; first += AHEAD * LOOKERS) {
    float logits_here[AHEAD];
    load_ahead(logits_here, row.logits, first, range.to, __uint_as_float(0xff800000u));
#pragma unroll
    for (u32 j = 0; j < AHEAD; ++j) own += mass_of(row.bits_of(logits_here[j]));
  }
  for (u32 apart = WARP / 2; apart > 0; apart /= 2) own += __shfl_xor_sync(WHOLE_WARP, own, apart);
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = own;
  __syncthreads();
  if (threadIdx.x > 0) return;
  u64 mass = 0;
  for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) mass += sums[warp];
  parts[blockIdx.x * PARTS + blockIdx.y].mass = mass;
}

// One block a row.
KERNEL(512) draw_tokens(const u32* count, const float* logits, const Draw* draws, const Part* parts, Drawn* drawn,
                        u32 vocab) {
  __shared__ Shared shared;
  const bool there = blockIdx.x < *count;
  after_those_before();
  if (!there) return;
  const Draw draw = draws[blockIdx.x];
  const Distribution row = distribution_of(logits, draw, vocab, parts, blockIdx.x);
  parts += blockIdx.x * PARTS;
  if (__ballot_sync(WHOLE_WARP, parts[threadIdx.x % WARP].finite != 0) != WHOLE_WARP) {
    if (threadIdx.x == 0) drawn[blockIdx.x] = Drawn{0, 0.0f, 0, 0};
    return;
  }
  u64 mass = 0;
  for (u32 part = 0; part < PARTS; ++part) mass += parts[part].mass;
  u32 id;
  if (draw.temperature == 0.0f) {
    u32 part = 0;
    while (parts[part].largest < row.largest) ++part;
    id = walk(range_of(part, vocab), 0, shared, [&](u32 i) -> u64 { return row.logits[i] >= row.largest; });
  } else if ((draw.top_k == 0 || draw.top_k >= vocab) && draw.top_p >= 1.0f) {
    u64 target = __umul64hi(uniform_bits(draw) << 11, mass);
    u32 part = 0;
    while (target >= parts[part].mass) target -= parts[part++].mass;
    id = walk(range_of(part, vocab), target, shared, [&](u32 i) -> u64 { return mass_of(row.bits(i)); });
  } else {
    id = draw_truncated(row, draw, mass, shared);
  }
  if (threadIdx.x == 0) {
    const double temperature = draw.temperature == 0.0f ? 1.0 : (double)draw.temperature;
    const double scaled = (double)(row.logits[id] - row.largest) / temperature;
    const double logprob = scaled - log((double)mass / (double)UNITS);
    drawn[blockIdx.x] = Drawn{id, (float)logprob, 1, 0};
  }
}
