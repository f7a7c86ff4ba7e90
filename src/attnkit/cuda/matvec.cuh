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
// Macros: BF16 (activations are bfloat16, else float16), INT8 (weights are int8, else as activations), WARPS (that
// multiply), SPAN (steps of a row that are loaded together), BLOCKS (that share an SM at least: a bound for registers).
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
constexpr int X_PAD = INT8 ? 8 : 32;               // elements between rows of x: no two rows in the same banks

// Of weight row g with x rows 2 t and 2 t + 1, and of weight row g + 8 with the same; in two parts, so that one product
// need not wait for the one before it.
struct Sums {
  float a[4] = {0.f, 0.f, 0.f, 0.f};
  float b[4] = {0.f, 0.f, 0.f, 0.f};
};

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
#if INT8
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

// x [m, k] into shared memory, rows of `width` elements, zero from k on, `stride` apart; with int8 weights in the order of
// `widened`. Several loads are on their way at a time: nothing can be multiplied before they are there.
template <int THREADS>
__device__ inline void stage_x(half_bits* staged, const half_bits* x, long long x_stride, int m, int k, int width, int stride) {
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
}

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
  #pragma unroll
  for (int i = 0; i < 4; ++i)
    if (2 * t + i % 2 < m) sums_of(partial, slot, warp, 2 * t + i % 2, m)[g + 8 * (i / 2)] = sums.a[i] + sums.b[i];
}

// Add up what the warps found for tiles begin .. end, in the order of the warps, and write it; leave zeros behind.
template <int THREADS>
__device__ inline void finish(float* partial, int slots, int begin, int end, Rows rows, half_bits* out, const float* scale,
                              const half_bits* bias, int m, int n) {
  for (int i = threadIdx.x; i < (end - begin) * m * TILE; i += THREADS) {
    const int r = i % TILE, row = i / TILE % m, tile = begin + i / (TILE * m);
    float* part = sums_of(partial, slot_of(tile, slots), 0, row, m) + r;
    float found[WARPS], sum = 0.f;
    // all of them are on their way before the first is added, and before zeros are written where the next might lie
    #pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) found[warp] = part[warp * m * TILE];
    #pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
      sum += found[warp];
      part[warp * m * TILE] = 0.f;
    }
    const int column = rows.first + tile * TILE + r;
    if (tile * TILE + r < rows.count) {
      if (scale) sum *= scale[column];
      if (bias) sum += to_float(bias[column]);
      out[(long long)row * n + column] = to_half(sum);
    }
  }
}
