// Instructions that the decoder's kernels need beside those of ../ptx.cuh, a function each.
#pragma once
#include "ptx.cuh"

__device__ inline char* shared_memory() {
  extern __shared__ __align__(128) char shared[];
  return shared;
}

// A tile's sums, [16, 8] float32, plus A [16, 16] B [16, 8] in bfloat16. Lane 4 g + t has A (g, 2 t ..) in a0, (g + 8, 2 t ..)
// in a1, (g, 2 t + 8 ..) in a2, (g + 8, 2 t + 8 ..) in a3, two each, B (2 t .., g) in b0 and (2 t + 8 .., g) in b1, and of the
// sums (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ inline void multiply_tile(float (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// What the lane whose number differs in these bits has.
__device__ inline float from_lane_xor(float value, int bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }

__device__ inline unsigned long long from_lane_xor(unsigned long long value, int bits) {
  return __shfl_xor_sync(0xffffffffu, value, bits);
}

__device__ inline float sum_of_warp(float value) {
  for (int bits = 16; bits > 0; bits /= 2) value += from_lane_xor(value, bits);
  return value;
}

// What another block may have written a moment ago: from the L2, for this processor's L1 may hold what was there before.
template <class T>
__device__ inline T fresh(const T* address) { return __ldcg(address); }

// Tell others: what this thread wrote, or knows that its block wrote, is seen by whoever hears it.
__device__ inline void signal(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ inline unsigned hear(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// a / b, but for the last bits, and 0 where b is beyond 2^126.
__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }

__device__ inline float as_float(word bits) { return __uint_as_float(bits); }
__device__ inline word as_bits(float number) { return __float_as_uint(number); }
__device__ inline float infinity() { return __uint_as_float(0x7f800000); }
