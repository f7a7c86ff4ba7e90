// What of a device depends on no other thread, for kernels that run on the host: types, numbers, arithmetic. Included by
// cuda_on_host.h and llama/grid_on_host.h, which run the threads. BF16 must be defined: whether half_bits is bfloat16.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 900
using std::max;
using std::min;

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

struct dim { int x; };
dim threadIdx, blockIdx, gridDim, blockDim;

typedef uint32_t word;
typedef uint16_t half_bits;
typedef uint64_t barrier;

inline word __byte_perm(word a, word b, word selector) {
  const uint64_t both = (uint64_t)b << 32 | a;
  word out = 0;
  for (int i = 0; i < 4; ++i) out |= (word)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}

inline float __uint_as_float(word bits) { float f; memcpy(&f, &bits, 4); return f; }
inline word __float_as_uint(float f) { word bits; memcpy(&bits, &f, 4); return bits; }

// ---- what cuda/ptx.cuh has ----

inline float to_float(half_bits bits) {
  if (BF16) return __uint_as_float((word)bits << 16);
  _Float16 number;
  memcpy(&number, &bits, 2);
  return (float)number;
}

inline half_bits to_half(float number) {
  if (BF16) {
    const word bits = __float_as_uint(number);
    return number != number ? 0x7fc0 : (half_bits)(bits + 0x7fff + (bits >> 16 & 1) >> 16);
  }
  const _Float16 half = (_Float16)number;
  half_bits bits;
  memcpy(&bits, &half, 2);
  return bits;
}

inline int to_int(float number) { return (int)rintf(number); }

template <word mask, word flip>
inline word masked(word a) { return (a & mask) ^ flip; }

inline word minus(word a, word b) {
  return to_half(to_float(a & 0xffff) - to_float(b & 0xffff)) | (word)to_half(to_float(a >> 16) - to_float(b >> 16)) << 16;
}

// A 16 x 16 tile times a 16 x 8 one, as a warp of tensor cores has them: number(lane, which, upper) is half a word of those
// that a lane of this warp gave, four of the first tile and two of the second.
template <class Number>
inline void add_product(float (&sums)[4], Number number) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k)
      sums[i] += number(4 * g + k % 8 / 2, lower + k / 8 * 2, k % 2) * number(4 * column + k % 8 / 2, 4 + k / 8, k % 2);
  }
}

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_begin() {}
inline void barrier_init_done() {}
