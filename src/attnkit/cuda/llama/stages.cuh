// What a token goes through, a function a stage: each block does its share of it.
//
//      qkv         n = rmsnorm(x);   q, k, v = Wqkv n;   q and k turned, k and v into the cache
//      attend      each split of each key head: sums of values and of weights
//      out         splits combined;  x += Wout a
//      gate_up     n = rmsnorm(x);   gated = silu(Wgate n) * (Wup n)
//      down        x += Wdown gated
//      head        n = rmsnorm(x);   logits = Whead n;   the best of this block's
//      choose      the best of all
//
// Between two stages all blocks must have finished the first. The residual stream is float32 and every sum is; what a
// matrix multiplies is bfloat16, and so is the cache. Where x is FIXED it is a whole number of units instead, 32512 of
// which are a sequence's largest: rounding to those costs less of a vector's norm than rounding to bfloat16 does.
#pragma once
#include "llama/stream.cuh"

constexpr float LOG2E = 1.4426950408889634f;

__device__ inline int lane_id() { return threadIdx.x % LANES; }
__device__ inline int warp_id() { return threadIdx.x / LANES; }

__device__ inline word packed(float low, float high) { return to_half(low) | (word)to_half(high) << 16; }

struct Eight { float v[8]; };

// What is so already stays as it is.
__device__ inline Eight widened(const Eight& e) { return e; }
__device__ inline uint4 narrowed(const uint4& bits) { return bits; }

__device__ inline Eight widened(const uint4& bits) {
  return {{as_float(bits.x << 16), as_float(bits.x & 0xffff0000), as_float(bits.y << 16), as_float(bits.y & 0xffff0000),
           as_float(bits.z << 16), as_float(bits.z & 0xffff0000), as_float(bits.w << 16), as_float(bits.w & 0xffff0000)}};
}

__device__ inline uint4 narrowed(const Eight& e) {
  return make_uint4(packed(e.v[0], e.v[1]), packed(e.v[2], e.v[3]), packed(e.v[4], e.v[5]), packed(e.v[6], e.v[7]));
}

__device__ inline Eight fresh_eight(const float* address) {
  const float4 a = fresh((const float4*)address), b = fresh((const float4*)address + 1);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

// The sum over all threads of the block, for each of them. Between two of these all threads meet once more.
__device__ inline float sum_of_block(float value, float* scratch) {
  value = sum_of_warp(value);
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < WARPS; ++i) sum += scratch[i];
  return sum;
}

// The sum over all threads of the block and the largest of their words, for each of them.
__device__ inline float sum_of_block(float value, word& largest, float* scratch) {
  value = sum_of_warp(value);
  largest = largest_of_warp(largest);
  if (lane_id() == 0) {
    scratch[warp_id()] = value;
    scratch[16 + warp_id()] = as_float(largest);
  }
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < WARPS; ++i) {
    sum += scratch[i];
    largest = max(largest, as_bits(scratch[16 + i]));
  }
  return sum;
}

// ---- what goes into a matrix: written to shared memory by the whole block ----

constexpr int HIDDEN_VECTORS = HIDDEN / WIDE;
constexpr int NORM_TURNS = (HIDDEN_VECTORS + THREADS - 1) / THREADS;

#if FIXED
// As bits sizes without a sign have the order of numbers, and what is not finite is beyond the largest.
__device__ inline word larger(word size, const Eight& e) {
  for (float v : e.v) size = max(size, as_bits(v) & 0x7fffffff);
  return size;
}

// How many units a one is, for a sequence whose largest number has this size; the unit itself, times `factor`, is left
// for `multiply`. Where something is not finite it is nan.
__device__ inline float per_unit(const Shared& shared, int b, word largest, float factor) {
  const float size = as_float(largest);
  const bool some = size > 1e-30f;
  const float unit = some ? size * (1.f / LARGEST) * factor : 0.f;
  if (threadIdx.x == 0) shared.scratch[32 + b] = largest < 0x7f800000 ? unit : as_float(0x7fc00000);
  return some ? quotient(LARGEST, size) : 0.f;
}

// Put the eight numbers of vector i where `multiply` finds their digits: a lane takes two vectors at once, and the lower
// digits of all lanes lie before the upper ones. Added to a float that counts in ones, a number is rounded to a whole one
// in its lower bits.
__device__ inline void put(const Shared& shared, int b, int i, const Eight& e, float per_unit) {
  word low[2], high[2];
  #pragma unroll
  for (int half = 0; half < 2; ++half) {
    word z[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) z[j] = as_bits(fmaf(e.v[4 * half + j], per_unit, 0x1.8p23f + 0x80));
    const word first = __byte_perm(z[0], z[1], 0x5140), second = __byte_perm(z[2], z[3], 0x5140);
    low[half] = __byte_perm(first, second, 0x5410) ^ 0x80808080;
    high[half] = __byte_perm(first, second, 0x7632);
  }
  uint2* to = (uint2*)(shared.x + b * X_VECTORS + (i & ~(X_BLOCK - 1)) + i % X_BLOCK / 2) + i % 2;
  to[0] = make_uint2(low[0], low[1]);
  to[2 * LANES] = make_uint2(high[0], high[1]);
}

#endif

// The vectors of every sequence that `finish` makes of what `load` reads, THREADS in a turn. What a thread reads in several
// turns is on its way together, as far as that needs few registers.
template <int VECTORS, class Load, class Finish>
__device__ inline void stage(const Shared& shared, Load load, Finish finish) {
  constexpr int TURNS = (VECTORS + THREADS - 1) / THREADS, TOGETHER = sizeof(load(0, 0)) > VECTOR ? 1 : TURNS;
  const auto there = [](int i) { return i * THREADS + threadIdx.x < VECTORS; };
  for (int b = 0; b < BATCH; ++b) {
    decltype(finish(load(0, 0))) x[TURNS];
    #pragma unroll
    for (int first = 0; first < TURNS; first += TOGETHER) {
      decltype(load(0, 0)) read[TOGETHER];
      #pragma unroll
      for (int i = 0; i < TOGETHER; ++i)
        if (there(first + i)) read[i] = load(b, first + i);
      #pragma unroll
      for (int i = 0; i < TOGETHER; ++i)
        if (there(first + i)) x[first + i] = finish(read[i]);
    }
#if FIXED
    word largest = 0;
    #pragma unroll
    for (int i = 0; i < TURNS; ++i)
      if (there(i)) largest = larger(largest, widened(x[i]));
    sum_of_block(0.f, largest, shared.scratch);
    const float scale = per_unit(shared, b, largest, 1.f);
    #pragma unroll
    for (int i = 0; i < TURNS; ++i)
      if (there(i)) put(shared, b, i * THREADS + threadIdx.x, widened(x[i]), scale);
#else
    #pragma unroll
    for (int i = 0; i < TURNS; ++i)
      if (there(i)) put(shared, b, i * THREADS + threadIdx.x, narrowed(x[i]));
#endif
    if (FIXED || b + 1 == BATCH) __syncthreads();
  }
}

// A norm's weights, read while there is nothing else to do.
struct Norm {
  uint4 weight[NORM_TURNS];

  __device__ explicit Norm(const half_bits* weights) {
    for (int i = 0; i < NORM_TURNS; ++i) {
      const int at = i * THREADS + threadIdx.x;
      if (at < HIDDEN_VECTORS) weight[i] = ((const uint4*)weights)[at];
    }
  }

  // rmsnorm of the residual stream, which `row` gives eight numbers of at a time, for every sequence.
  template <class Row>
  __device__ void apply(const Shared& shared, Row row) const {
    for (int b = 0; b < BATCH; ++b) {
      Eight x[NORM_TURNS];
      float squares = 0.f;
#if FIXED
      word largest = 0;
      for (int i = 0; i < NORM_TURNS; ++i) {
        const int at = i * THREADS + threadIdx.x;
        if (at >= HIDDEN_VECTORS) continue;
        x[i] = row(b, at);
        for (float v : x[i].v) squares += v * v;
        const Eight by = widened(weight[i]);
        for (int j = 0; j < 8; ++j) x[i].v[j] *= by.v[j];
        largest = larger(largest, x[i]);
      }
      squares = sum_of_block(squares, largest, shared.scratch);
      const float scale = per_unit(shared, b, largest, rsqrtf(squares / HIDDEN + EPSILON));
      for (int i = 0; i < NORM_TURNS; ++i) {
        const int at = i * THREADS + threadIdx.x;
        if (at < HIDDEN_VECTORS) put(shared, b, at, x[i], scale);
      }
#else
      for (int i = 0; i < NORM_TURNS; ++i) {
        const int at = i * THREADS + threadIdx.x;
        if (at >= HIDDEN_VECTORS) continue;
        x[i] = row(b, at);
        for (float v : x[i].v) squares += v * v;
      }
      const float factor = rsqrtf(sum_of_block(squares, shared.scratch) / HIDDEN + EPSILON);
      for (int i = 0; i < NORM_TURNS; ++i) {
        const int at = i * THREADS + threadIdx.x;
        if (at >= HIDDEN_VECTORS) continue;
        const Eight by = widened(weight[i]);
        for (int j = 0; j < 8; ++j) x[i].v[j] *= factor * by.v[j];
        put(shared, b, at, narrowed(x[i]));
      }
#endif
      __syncthreads();
    }
  }
};

__device__ inline void stage_gated(const Model& model, const Shared& shared) {
  constexpr int VECTORS = INTERMEDIATE / WIDE;
  stage<VECTORS>(
      shared,
      [&](int b, int turn) { return fresh((const uint4*)model.gated + b * VECTORS + turn * THREADS + threadIdx.x); },
      [](const uint4& gated) { return gated; });
}

// What attention left of eight elements of a head: of each split its sums of values, its largest score and sum of weights.
struct Splits {
  Eight values[SPLITS];
  float2 stats[SPLITS];
};

// Attention's output: the splits of a head weighed by what each has of the softmax.
__device__ inline void stage_attention(const Model& model, const Shared& shared) {
  stage<HQ * D / WIDE>(
      shared,
      [&](int b, int turn) {
        const int first = (b * HQ + turn * (THREADS / READERS) + threadIdx.x / READERS) * SPLITS;
        Splits splits;
        #pragma unroll
        for (int s = 0; s < SPLITS; ++s) {
          splits.stats[s] = fresh(model.stats + first + s);
          splits.values[s] = fresh_eight(model.partial + (first + s) * D + threadIdx.x % READERS * WIDE);
        }
        return splits;
      },
      [](const Splits& splits) {
        float top = -infinity(), sum = 0.f;
        for (const float2& stats : splits.stats) top = fmaxf(top, stats.x);
        Eight out = {};
        #pragma unroll
        for (int s = 0; s < SPLITS; ++s) {
          const float weight = exp2f(splits.stats[s].x - top);
          sum += weight * splits.stats[s].y;
          for (int j = 0; j < 8; ++j) out.v[j] += weight * splits.values[s].v[j];
        }
        const float factor = 1.f / sum;
        for (float& v : out.v) v *= factor;
        return out;
      });
}

// ---- what becomes of a pair's sums: lane b has those of sequence b ----

// Multiply this warp's pairs of a matrix. `before` reads what is needed beside the sums, which takes as long as a product.
template <int KIND, class Before, class After>
__device__ inline void multiply(const Model& model, const Shared& shared, Stream& stream, int layer, Before before, After after) {
  const int lane = lane_id();
  const float2* scales = (const float2*)model.scales[KIND] + layer * PAIRS[KIND];
  for (int pair = stream.pair(); pair < PAIRS[KIND]; pair = stream.pair()) {
    const auto known = before(pair, lane);
    const float2 scale = INT8 ? scales[pair] : make_float2(1.f, 1.f);
    float sums[BATCH][2];
    stream.multiply<WIDTH[KIND]>(shared.x, shared.scratch + 32, sums);
    float first = 0.f, second = 0.f;
    for (int b = 0; b < BATCH; ++b)
      if (lane == b) { first = sums[b][0] * scale.x; second = sums[b][1] * scale.y; }
    if (lane < BATCH) after(pair, lane, known, first, second);
  }
  stream.leave(PAIRS[KIND]);
}

// Where the cache of a sequence in a layer begins.
__device__ inline long long cache_of(int layer, int b) { return (long long)(layer * BATCH + b) * CAPACITY * HKV * D; }

__device__ inline void qkv(const Model& model, const Shared& shared, Stream& stream, int layer, int position) {
  constexpr int HALF = D / 2;
  const float scale = rsqrtf((float)D) * LOG2E;
  multiply<QKV>(
      model, shared, stream, layer,
      [&](int pair, int) { return model.turns[position * HALF + pair % HALF]; },
      [&](int pair, int b, float2 turn, float first, float second) {
        const int head = pair / HALF, at = pair % HALF;
        if (head < HQ + HKV) {
          const float turned = first * turn.x - second * turn.y;
          second = second * turn.x + first * turn.y;
          first = turned;
        }
        if (head < HQ) {
          float* q = model.q + (b * HQ + head) * D + at;
          q[0] = first * scale;
          q[HALF] = second * scale;
          return;
        }
        const bool key = head < HQ + HKV;
        const int row = (position * HKV + head - HQ - (key ? 0 : HKV)) * D + at;
        half_bits* cache = (key ? model.k_cache : model.v_cache) + cache_of(layer, b) + row;
        cache[0] = to_half(first);
        cache[HALF] = to_half(second);
      });
}

template <int KIND>
__device__ inline void add_to_stream(const Model& model, const Shared& shared, Stream& stream, int layer) {
  multiply<KIND>(
      model, shared, stream, layer,
      [&](int pair, int lane) {
        return lane < BATCH ? fresh((const float2*)(model.x + lane * HIDDEN) + pair) : make_float2(0.f, 0.f);
      },
      [&](int pair, int b, float2 x, float first, float second) {
        ((float2*)(model.x + b * HIDDEN))[pair] = make_float2(x.x + first, x.y + second);
      });
}

__device__ inline void gate_up(const Model& model, const Shared& shared, Stream& stream, int layer) {
  multiply<GATE_UP>(
      model, shared, stream, layer, [](int, int) { return 0; },
      [&](int pair, int b, int, float gate, float up) {
        model.gated[b * INTERMEDIATE + pair] = to_half(gate / (1.f + expf(-gate)) * up);
      });
}

// ---- attention ----

// Keys of a lane whose loads are on their way together; for a Blackwell the compiler needs more registers for all else.
constexpr int AT_ONCE = GROUP == 1 ? 8 : __CUDA_ARCH__ >= 1000 ? 2 : 4;
constexpr int ITEMS = BATCH * HKV * SPLITS;  // splits of key heads, shared out over the blocks

// A split of the keys of one key head, as one lane sees it.
struct Split {
  int b, head, split, first, last;
  int reader, mine;  // which eight of the D elements, and which of the keys read side by side
  const uint4 *k_cache, *v_cache;

  __device__ Split(const Model& model, int layer, int item, int length) {
    split = item % SPLITS;
    head = item / SPLITS % HKV;
    b = item / SPLITS / HKV;
    first = length * split / SPLITS;
    last = length * (split + 1) / SPLITS;
    reader = lane_id() % READERS;
    mine = warp_id() * KEYS + lane_id() / READERS;
    k_cache = (const uint4*)(model.k_cache + cache_of(layer, b) + head * D) + reader;
    v_cache = (const uint4*)(model.v_cache + cache_of(layer, b) + head * D) + reader;
  }
};

// Some keys of a lane, and their values.
struct Keys {
  uint4 k[AT_ONCE], v[AT_ONCE];

  // Those from `begin` on that come before `end`; the others stay as they are.
  __device__ void load(const Split& split, int begin, int from, int end) {
    #pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int key = begin + i * PARTS + split.mine;
      if (key < from || key >= end) continue;
      k[i] = fresh(split.k_cache + key * (HKV * READERS));
      v[i] = fresh(split.v_cache + key * (HKV * READERS));
    }
  }

  __device__ void clear() {
    #pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) k[i] = v[i] = make_uint4(0, 0, 0, 0);
  }
};

// One query head's softmax over the keys that a few lanes have seen; each of them has eight of the D sums.
struct Softmax {
  float top = -infinity(), sum = 0.f;
  Eight out = {};

  // Add these keys, of which those before `last` are there.
  __device__ void add(const Eight& q, const Keys& keys, int begin, int last, int mine) {
    float score[AT_ONCE], new_top = top;
    #pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const Eight there = widened(keys.k[i]);
      float dot = 0.f;
      for (int j = 0; j < 8; ++j) dot += q.v[j] * there.v[j];
      for (int bits = READERS / 2; bits > 0; bits /= 2) dot += from_lane_xor(dot, bits);
      score[i] = begin + i * PARTS + mine < last ? dot : -infinity();
      new_top = fmaxf(new_top, score[i]);
    }
    // with no key yet the largest is -inf, and -inf - -inf is nan
    const float shift = new_top == -infinity() ? 0.f : new_top, factor = exp2f(top - shift);
    top = new_top;
    sum *= factor;
    for (float& o : out.v) o *= factor;
    #pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const float weight = exp2f(score[i] - shift);
      const Eight there = widened(keys.v[i]);
      sum += weight;
      for (int j = 0; j < 8; ++j) out.v[j] += weight * there.v[j];
    }
  }
};

// The softmaxes of a block's lanes become the split's one.
__device__ inline void merge(const Model& model, const Shared& shared, const Softmax& softmax, const Split& at, int g) {
  float* out = (float*)shared.x;               // [PARTS, D]
  float2* stats = (float2*)(out + PARTS * D);  // [PARTS]
  float4* mine = (float4*)(out + at.mine * D + at.reader * WIDE);
  mine[0] = make_float4(softmax.out.v[0], softmax.out.v[1], softmax.out.v[2], softmax.out.v[3]);
  mine[1] = make_float4(softmax.out.v[4], softmax.out.v[5], softmax.out.v[6], softmax.out.v[7]);
  if (at.reader == 0) stats[at.mine] = make_float2(softmax.top, softmax.sum);
  __syncthreads();
  const int to = (at.b * HQ + at.head * GROUP + g) * SPLITS + at.split;
  for (int i = threadIdx.x; i < D; i += THREADS) {
    float top = -infinity(), sum = 0.f, value = 0.f;
    for (int part = 0; part < PARTS; ++part) top = fmaxf(top, stats[part].x);
    const float shift = top == -infinity() ? 0.f : top;
    for (int part = 0; part < PARTS; ++part) {
      const float weight = exp2f(stats[part].x - shift);
      sum += weight * stats[part].y;
      value += weight * out[part * D + i];
    }
    model.partial[to * D + i] = value;
    if (i == 0) model.stats[to] = make_float2(top, sum);
  }
  __syncthreads();
}

// This block's splits. Between constructing and `finish` others may still write the newest key: only the older ones of the
// block's first split are read before.
struct Attend {
  const Model& model;
  const int layer, position;
  Keys keys;

  __device__ Attend(const Model& model, int layer, int position) : model(model), layer(layer), position(position) {
    keys.clear();
    if (blockIdx.x >= ITEMS) return;
    const Split split(model, layer, blockIdx.x, position + 1);
    keys.load(split, split.first, 0, min(split.last, position));
  }

  __device__ void finish(const Shared& shared) {
    for (int item = blockIdx.x; item < ITEMS; item += gridDim.x) {
      const Split split(model, layer, item, position + 1);
      Eight q[GROUP];
      for (int g = 0; g < GROUP; ++g)
        q[g] = fresh_eight(model.q + (split.b * HQ + split.head * GROUP + g) * D + split.reader * WIDE);
      Softmax softmax[GROUP];
      for (int begin = split.first; begin < split.last; begin += PARTS * AT_ONCE) {
        const bool read = item == blockIdx.x && begin == split.first;
        if (!read) keys.clear();
        keys.load(split, begin, read ? position : 0, split.last);
        #pragma unroll
        for (int g = 0; g < GROUP; ++g) softmax[g].add(q[g], keys, begin, split.last, split.mine);
      }
      for (int g = 0; g < GROUP; ++g) merge(model, shared, softmax[g], split, g);
    }
  }
};

// ---- the next token ----

__device__ inline unsigned mix(unsigned x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// attnkit.llama.sampling has the same: what is added to a logit so that the largest sum is a draw.
__device__ inline float gumbel(unsigned seed, int position, int b, int token) {
  const unsigned bits = mix(mix(mix(mix(seed) ^ (unsigned)position) ^ (unsigned)b) ^ (unsigned)token);
  return -logf(-logf(((float)(bits >> 9) + 0.5f) * 0x1p-23f));
}

// A score and its token as one number: the larger the better, and of equals the first token.
__device__ inline unsigned long long ranked(float score, int token) {
  const unsigned bits = as_bits(score), rank = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (unsigned long long)rank << 32 | (unsigned)~token;
}

__device__ inline void head(const Model& model, const Shared& shared, Stream& stream, int position, Sampling sampling) {
  unsigned long long best = 0;
  multiply<HEAD>(
      model, shared, stream, 0, [](int, int) { return 0; },
      [&](int pair, int b, int, float first, float second) {
        ((float2*)(model.logits + (long long)b * VOCAB))[pair] = make_float2(first, second);
        for (int i = 0; i < 2; ++i) {
          float score = i ? second : first;
          if (sampling.temperature > 0.f)
            score = score / sampling.temperature + gumbel(sampling.seed, position, b, 2 * pair + i);
          const unsigned long long rank = ranked(score, 2 * pair + i);
          best = rank > best ? rank : best;
        }
      });
  const int lane = lane_id();
  if (lane < BATCH) model.best[((long long)blockIdx.x * WARPS + warp_id()) * BATCH + lane] = best;
}

// The tokens that follow, for every thread of the block; `blocks` have left their best.
__device__ inline void choose(const Model& model, const Shared& shared, int blocks, int (&token)[BATCH]) {
  unsigned long long* scratch = (unsigned long long*)shared.scratch;
  for (int b = 0; b < BATCH; ++b) {
    unsigned long long best = 0;
    for (int i = threadIdx.x; i < blocks * WARPS; i += THREADS) {
      const unsigned long long rank = fresh(model.best + (long long)i * BATCH + b);
      best = rank > best ? rank : best;
    }
    for (int bits = LANES / 2; bits > 0; bits /= 2) {
      const unsigned long long rank = from_lane_xor(best, bits);
      best = rank > best ? rank : best;
    }
    if (lane_id() == 0) scratch[warp_id()] = best;
    __syncthreads();
    for (int i = 0; i < WARPS; ++i) best = scratch[i] > best ? scratch[i] : best;
    __syncthreads();
    token[b] = (int)~(unsigned)best;
  }
}

// Write the chosen tokens down, and that one more is in the cache: for one block to do.
__device__ inline void write_down(const Model& model, int position, const int (&token)[BATCH]) {
  if (threadIdx.x == 0) {
    for (int b = 0; b < BATCH; ++b) model.tokens[b * (CAPACITY + 1) + position + 1] = token[b];
    *model.position = position + 1;
  }
}

// Eight numbers of the residual stream, and of a token's embedding, from which it starts.
struct FromStream {
  const Model& model;
  __device__ Eight operator()(int b, int at) const { return fresh_eight(model.x + b * HIDDEN + at * WIDE); }
};

struct FromEmbedding {
  const Model& model;
  const int (&token)[BATCH];
  __device__ Eight operator()(int b, int at) const {
    return widened(((const uint4*)(model.embedding + (long long)token[b] * HIDDEN))[at]);
  }
};
