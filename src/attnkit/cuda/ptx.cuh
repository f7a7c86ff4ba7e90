// The instructions that CUDA C++ has no name for, a function each. Nothing here knows what it is used for.
//
// Macros: BF16 (16-bit numbers are bfloat16, else float16).
#pragma once

typedef unsigned int word;
typedef unsigned short half_bits;
typedef unsigned long long barrier;  // an mbarrier in shared memory

__device__ inline float to_float(half_bits bits) {
  float number;
  if (BF16) number = __uint_as_float((word)bits << 16);
  else asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
  return number;
}

__device__ inline half_bits to_half(float number) {
  half_bits bits;
  if (BF16) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  else asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  return bits;
}

// (a & mask) ^ flip
template <word mask, word flip>
__device__ inline word masked(word a) {
  word out;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(a), "n"(mask), "n"(flip));
  return out;
}

// Two 16-bit numbers less two others.
__device__ inline word minus(word a, word b) {
  word out;
#if BF16
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(b), "r"(0xbf80bf80), "r"(a));
#else
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
#endif
  return out;
}

// Two groups of 8 rows at once: sums of a warp, [16, 8] float32, plus A [16, 16] B [16, 8] in 16 bits. Lane 4 g + t has
// A (g, 2 t), (g, 2 t + 1) in a0, the same of row g + 8 in a1, and of columns 2 t + 8, 2 t + 9 in a2 and a3; B (2 t, g),
// (2 t + 1, g) in b0 and (2 t + 8, g), (2 t + 9, g) in b1; and of the sums (g, 2 t), (g, 2 t + 1) and the same of row g + 8.
__device__ inline void multiply_pair(float (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
#if BF16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of whole numbers, A [16, 32] B [32, 8] in bytes with a sign, four consecutive k in each word: lane 4 g + t has
// A (g, 4 t ..) in a0, the same of row g + 8 in a1, and of columns 4 t + 16 .. in a2 and a3; B likewise in b0 and b1.
__device__ inline void multiply_bytes(int (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The largest that a lane of this warp has.
__device__ inline word largest_of_warp(word mine) { return __reduce_max_sync(0xffffffff, mine); }

// A lane's number plus that of the lane beside it: lanes 2 i and 2 i + 1 get the same.
__device__ inline float plus_neighbour(float mine) { return mine + __shfl_xor_sync(0xffffffff, mine, 1); }

__device__ inline int to_int(float number) { return __float2int_rn(number); }

// 16 bytes that are read once and by nobody else: past the L1, and the L2 may fetch the neighbours with them.
__device__ inline uint4 load_stream(const char* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
  return v;
}

// Have a line brought into the L2, for somebody who will want it.
__device__ inline void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// Programmatic dependent launch. Before the wait a kernel may touch only what no kernel that may still run writes, and it
// may write nothing. In a kernel that was launched without overlap both do nothing.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

#if __CUDA_ARCH__ >= 900
// Whether this is the lane that acts for its warp, the same each time; all lanes must ask. What only it does the compiler
// knows to be done by one thread: a bulk copy takes its operands from that thread, without a loop over all that might.
__device__ inline bool elected() {
  word is;
  asm volatile("{\n.reg .pred me;\nelect.sync _|me, 0xffffffff;\nselp.u32 %0, 1, 0, me;\n}" : "=r"(is));
  return is;
}

__device__ inline word shared_address(const void* pointer) { return (word)__cvta_generic_to_shared(pointer); }

__device__ inline void barrier_init(barrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals));
}

// Barriers were initialised: the copy engine may be given them.
__device__ inline void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_arrive(barrier* b) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

// Arrive, and let the barrier wait for so many bytes as well.
__device__ inline void barrier_arrive_expecting(barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}

__device__ inline void barrier_wait(barrier* b, int parity) {
  asm volatile("{\n.reg .pred done;\nagain:\n"
               "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
               "@!done bra again;\n}\n" ::"r"(shared_address(b)), "r"(parity) : "memory");
}

// Bytes from global to shared memory by the copy engine, which tells the barrier of them; all are multiples of 16. The L2
// is told that nobody else wants them.
__device__ inline void copy_bulk(void* to, const char* from, int bytes, barrier* b) {
  unsigned long long policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(b)), "l"(policy) : "memory");
}
#endif

// Meet the other warps of a group of so many threads.
template <int number, int threads>
__device__ inline void sync_group() { asm volatile("bar.sync %0, %1;" ::"n"(number), "n"(threads) : "memory"); }
