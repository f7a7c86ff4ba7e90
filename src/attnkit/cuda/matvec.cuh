// What the matrix-vector kernels share: out [m, n] = x [m, k] weightᵀ [k, n] for m of 1 to 8, times scale [n], plus bias [n].
//
// The product is done by the tensor cores, not because it is large but because they leave the rest of the SM to the loads.
// A tile is 16 rows of weight. Of every 64 bytes of a row a lane loads 16, as it stands in memory:
//
//      lane = 4 g + t        rows g and g + 8 of the tile, bytes 16 t .. 16 t + 15 of a step
//
// which is what mma.m16n8k16 wants as its A operand if k is taken in another order, the same for x (its B operand, a row
// of x in each column). So nothing is transposed or shuffled for it, and 8 rows of x cost what one costs. Lanes of a warp
// then hold sums over the k of their warp: warps add up through shared memory, always in the same order.
//
// int8 weights become 16-bit floats exactly, without a conversion instruction. Two bytes at a time are masked out of a
// word into two halves, so a word of bytes 0 1 2 3 gives the pairs (0, 2) and (1, 3), and x is staged in that order.
//
// Or, where FIXED, not at all: x is made a fixed-point number of its row instead, of four digits with a sign to the base
// 256, and the digits of a row are columns of B for the integers' tensor core, which takes weights as they are. Sums of
// digits are exact, and so is x but for what is less than 2^-30 of its row's largest.
//
// Macros: BF16 (activations are bfloat16, else float16), INT8 (weights are int8, else as activations), WARPS (that
// multiply), SPAN (steps of a row that are loaded together), BLOCKS (that share an SM at least: a bound for registers),
// FIXED (with INT8, for at most two rows of x).
// K is a multiple of 8, with int8 weights of 16.
#pragma once
#include "ptx.cuh"

constexpr int TILE = 16;
constexpr int LANE_BYTES = 16;
constexpr int STEP_BYTES = 4 * LANE_BYTES;
constexpr int WEIGHT_BYTES = INT8 ? 1 : 2;
constexpr int LANE_K = LANE_BYTES / WEIGHT_BYTES;  // elements that a lane loads at once
constexpr int STEP_K = STEP_BYTES / WEIGHT_BYTES;  // elements of a row in a step
constexpr int PIECE_K = SPAN * STEP_K;
constexpr int X_PAD = FIXED ? 64 : INT8 ? 8 : 32;  // elements between staged rows: no two rows in the same banks

#if FIXED
typedef signed char staged_x;        // one digit
constexpr int STAGED_ROWS = 4;       // of a row of x, the least digit's first
typedef int number;
#else
typedef half_bits staged_x;
constexpr int STAGED_ROWS = 1;
typedef float number;
#endif

// Of weight row g with x rows 2 t and 2 t + 1, and of weight row g + 8 with the same; in two parts, so that one product
// need not wait for the one before it.
struct Sums {
  number a[4] = {0, 0, 0, 0};
  number b[4] = {0, 0, 0, 0};
};

// What one of the staged numbers of a row of x counts.
struct Unit { float first = 1.f, second = 1.f; };

// The staged row that is column g of B, times the elements of a row.
__device__ inline int staged_column(int g, int m) { return FIXED ? 4 * min(g / 4, m - 1) + g % 4 : min(g, m - 1); }

// Bytes 0 and 2 of a word, numbers with a sign, as two 16-bit floats.
__device__ inline word widened(word bytes) {
#if BF16
  // 128 + the low seven bits, less 128 or, where the sign bit says -128, 256: all of them exact in bfloat16
  return minus(masked<0x007f007f, 0x43004300>(bytes), masked<0x00800080, 0x43004300>(bytes));
#else
  // 1024 + 128 + the number, less 1152: all of them exact in float16
  return minus(masked<0x00ff00ff, 0x64806480>(bytes), 0x64806480);
#endif
}

// A lane's 16 bytes of either of its rows in one step.
struct Step { uint4 upper, lower; };

// One step of weight with what x has there.
__device__ inline void multiply_step(Sums& sums, const Step& w, const uint4* x) {
  const uint4 x0 = x[0], &u = w.upper, &l = w.lower;
#if FIXED
  multiply_bytes(sums.a, u.x, l.x, u.y, l.y, x0.x, x0.y);
  multiply_bytes(sums.b, u.z, l.z, u.w, l.w, x0.z, x0.w);
#elif INT8
  const uint4 x1 = x[1];
  multiply_pair(sums.a, widened(u.x), widened(l.x), widened(u.x >> 8), widened(l.x >> 8), x0.x, x0.y);
  multiply_pair(sums.b, widened(u.y), widened(l.y), widened(u.y >> 8), widened(l.y >> 8), x0.z, x0.w);
  multiply_pair(sums.a, widened(u.z), widened(l.z), widened(u.z >> 8), widened(l.z >> 8), x1.x, x1.y);
  multiply_pair(sums.b, widened(u.w), widened(l.w), widened(u.w >> 8), widened(l.w >> 8), x1.z, x1.w);
#else
  multiply_pair(sums.a, u.x, l.x, u.y, l.y, x0.x, x0.y);
  multiply_pair(sums.b, u.z, l.z, u.w, l.w, x0.z, x0.w);
#endif
}

#if FIXED
// Four numbers' digits, from the least: a word of the first digits, one of the second ones, ...
__device__ inline void digits(word (&out)[4], const int (&x)[4]) {
  word z[4];
  #pragma unroll
  for (int i = 0; i < 4; ++i) z[i] = ((word)x[i] + 0x00808080) ^ 0x00808080;  // what is 128 or more is carried
  const word low01 = __byte_perm(z[0], z[1], 0x5140), low23 = __byte_perm(z[2], z[3], 0x5140);
  const word high01 = __byte_perm(z[0], z[1], 0x7362), high23 = __byte_perm(z[2], z[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

// x [m, k] into shared memory by the first THREADS threads, who `meet`, as digits: rows of `width` numbers, zero from k on, `stride` apart. `largest` is room for a
// word a warp and row. A row with something that is not finite counts in units of nan.
template <int THREADS, class Meet>
__device__ inline Unit stage_x(staged_x* staged, word* largest, const half_bits* x, long long x_stride, int m, int k, int width,
                               int stride, Meet meet) {
  constexpr int ALL = THREADS / 32, KEPT = 4;  // vectors of a thread that are not read twice
  constexpr word INFINITE = BF16 ? 0x7f80 : 0x7c00;
  float unit[2] = {1.f, 1.f};
  #pragma unroll
  for (int row = 0; row < 2; ++row) {
    if (row >= m) break;
    const half_bits* from = x + row * x_stride;
    auto vector = [&](int i) { return i < k ? *(const uint4*)(from + i) : make_uint4(0, 0, 0, 0); };
    uint4 kept[KEPT];
    word most = 0;
    auto compare = [&](const uint4& v) {
      const word words[4] = {v.x, v.y, v.z, v.w};
      #pragma unroll
      for (int j = 0; j < 4; ++j) most = max(most, max(words[j] & 0x7fff, words[j] >> 16 & 0x7fff));
    };
    #pragma unroll
    for (int j = 0; j < KEPT; ++j) kept[j] = vector(8 * (threadIdx.x + j * THREADS));
    #pragma unroll
    for (int j = 0; j < KEPT; ++j) compare(kept[j]);
    for (int i = 8 * (threadIdx.x + KEPT * THREADS); i < k; i += 8 * THREADS) compare(vector(i));
    most = largest_of_warp(most);
    if (threadIdx.x % 32 == 0) largest[row * ALL + threadIdx.x / 32] = most;
    meet();
    most = 0;
    #pragma unroll
    for (int i = 0; i < ALL; ++i) most = max(most, largest[row * ALL + i]);
    // numbers are below 2^30 units: the top digit has room for a carry
    const int exponent = max((int)(__float_as_uint(to_float(most)) >> 23) - 29, 1);
    unit[row] = __uint_as_float(most < INFINITE ? exponent << 23 : 0x7fc00000);
    const float per_unit = __uint_as_float(254 - exponent << 23);
    auto stage = [&](int i, const uint4& v) {
      const word words[4] = {v.x, v.y, v.z, v.w};
      int whole[2][4];
      #pragma unroll
      for (int j = 0; j < 8; ++j) whole[j / 4][j % 4] = to_int(to_float(words[j / 2] >> 16 * (j % 2)) * per_unit);
      word low[4], high[4];
      digits(low, whole[0]);
      digits(high, whole[1]);
      #pragma unroll
      for (int j = 0; j < 4; ++j) *(uint2*)(staged + (4 * row + j) * stride + i) = make_uint2(low[j], high[j]);
    };
    #pragma unroll
    for (int j = 0; j < KEPT; ++j)
      if (const int i = 8 * (threadIdx.x + j * THREADS); i < width) stage(i, kept[j]);
    for (int i = 8 * (threadIdx.x + KEPT * THREADS); i < width; i += 8 * THREADS) stage(i, vector(i));
  }
  return {unit[0], unit[1]};
}
#else
// x [m, k] into shared memory by the first THREADS threads, rows of `width` elements, zero from k on, `stride` apart; with int8 weights in the order of
// `widened`. Several loads are on their way at a time: nothing can be multiplied before they are there.
template <int THREADS, class Meet>
__device__ inline Unit stage_x(staged_x* staged, word*, const half_bits* x, long long x_stride, int m, int k, int width,
                               int stride, Meet) {
  constexpr int AT_ONCE = THREADS < 512 ? 4 : 2;
  const unsigned vectors = width / 8;
  for (unsigned first = threadIdx.x; first < m * vectors; first += AT_ONCE * THREADS) {
    uint4 v[AT_ONCE];
    #pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      const unsigned at = first + j * THREADS, row = at / vectors, i = 8 * (at - row * vectors);
      v[j] = make_uint4(0, 0, 0, 0);
      if (row < m && i < k) v[j] = *(const uint4*)(x + row * x_stride + i);
    }
    #pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      const unsigned at = first + j * THREADS, row = at / vectors, i = 8 * (at - row * vectors);
#if INT8
      v[j] = make_uint4(__byte_perm(v[j].x, v[j].y, 0x5410), __byte_perm(v[j].x, v[j].y, 0x7632),
                        __byte_perm(v[j].z, v[j].w, 0x5410), __byte_perm(v[j].z, v[j].w, 0x7632));
#endif
      if (row < m) *(uint4*)(staged + row * stride + i) = v[j];
    }
  }
  return {};
}
#endif

// Scale and bias are wanted when all else is done: they are on their way to the L2 before it.
__device__ inline void prefetch_rows(const void* vector, int bytes, int first, int count) {
  const char* begin = (const char*)vector + (long long)first * bytes;
  if (vector)
    for (int at = 128 * threadIdx.x; at < count * bytes + 127; at += 128 * blockDim.x) prefetch(begin + min(at, count * bytes - 1));
}

// A block's rows: consecutive ones, of which it has `even`, and the first `odd` blocks one more.
struct Rows { int first, count; };

__device__ inline Rows rows_of_block(int even, int odd) {
  const int block = blockIdx.x;
  return {block * even + min(block, odd), even + (block < odd)};
}

__device__ inline int slot_of(int tile, int slots) { return tile < slots ? tile : tile % slots; }

// The sums of one tile that the warps found: [slot][warp][x row][weight row] in shared memory.
__device__ inline float* sums_of(float* partial, int slot, int warp, int row, int m) {
  return partial + ((slot * WARPS + warp) * m + row) * TILE;
}

__device__ inline void keep(float* partial, int slot, int warp, int m, const Sums& sums) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#if FIXED
  #pragma unroll
  for (int i = 0; i < 2; ++i) {
    // lanes of even t have a row's lower two digits, those beside them the upper two
    const float two = (float)(sums.a[2 * i] + sums.b[2 * i]) + 256.f * (float)(sums.a[2 * i + 1] + sums.b[2 * i + 1]);
    const float all = plus_neighbour(t % 2 ? 65536.f * two : two);
    if (t % 2 == 0 && t / 2 < m) sums_of(partial, slot, warp, t / 2, m)[g + 8 * i] = all;
  }
#else
  #pragma unroll
  for (int i = 0; i < 4; ++i)
    if (2 * t + i % 2 < m) sums_of(partial, slot, warp, 2 * t + i % 2, m)[g + 8 * (i / 2)] = sums.a[i] + sums.b[i];
#endif
}

// Add up what the warps found for tiles begin .. end, in the order of the warps, and write it; leave zeros behind.
template <int THREADS>
__device__ inline void finish(float* partial, int slots, int begin, int end, Rows rows, half_bits* out, const float* scale,
                              const half_bits* bias, int m, int n, Unit unit) {
  for (int i = threadIdx.x; i < (end - begin) * m * TILE; i += THREADS) {
    const int r = i % TILE, row = i / TILE % m, tile = begin + i / (TILE * m);
    float* part = sums_of(partial, slot_of(tile, slots), 0, row, m) + r;
    const int column = rows.first + tile * TILE + r;
    const bool mine = tile * TILE + r < rows.count;
    // on its way while the sums are
    const float factor = mine && scale ? scale[column] : 1.f, more = mine && bias ? to_float(bias[column]) : 0.f;
    float found[WARPS], sum = 0.f;
    // all of them are on their way before the first is added, and before zeros are written where the next might lie
    #pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) found[warp] = part[warp * m * TILE];
    #pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
      sum += found[warp];
      part[warp * m * TILE] = 0.f;
    }
    if (mine) {
      if (FIXED) sum *= row ? unit.second : unit.first;
      if (scale) sum *= factor;
      if (bias) sum += more;
      out[(long long)row * n + column] = to_half(sum);
    }
  }
}
