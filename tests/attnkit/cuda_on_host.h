// Runs a CUDA kernel's own source on the host: blocks one after the other, the threads of a block as fibers of which one
// runs at a time, in an order that a seed shuffles. Stands in for cuda/ptx.cuh and for what NVRTC knows by itself.
//
// What it finds: wrong indices (global reads and shared memory have bounds), what some order of warps breaks, reads of
// shared memory that nobody has written (it begins as NaN), and deadlocks (all fibers wait). What it cannot: anything
// about time, and what a GPU's memory model lets happen between two points where threads meet.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 900
using std::min;
using std::max;

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
struct dim { int x; };

typedef uint32_t word;
typedef uint16_t half_bits;
typedef uint64_t barrier;

inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = ((uint64_t)b << 32) | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= (uint32_t)((both >> (8 * (selector >> (4 * i) & 7))) & 0xff) << (8 * i);
  return out;
}

namespace host {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
  std::function<bool()> ready;  // empty: can run
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
int current = 0;
std::mt19937 random;
std::function<void()> body;
std::vector<std::function<void()>> copies;  // what the copy engine has been asked for and has not done
const char *global_begin, *global_end;

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(3);
}

inline void wait_until(std::function<bool()> ready) {
  Fiber& me = fibers[current];
  me.ready = ready;
  swapcontext(&me.context, &scheduler);
}

struct Meeting {  // of a group of threads, again and again
  int arrived = 0, round = 0;
};
std::map<int, Meeting> meetings;

inline void meet(int key, int threads) {
  Meeting& m = meetings[key];
  const int round = m.round;
  if (++m.arrived == threads) {
    m.arrived = 0;
    ++m.round;
  }
  wait_until([&m, round] { return m.round != round; });
}

struct Bar { int expected, pending, bytes, phase; };
std::map<void*, Bar> bars;

inline void settle(Bar& b) {
  if (b.pending == 0 && b.bytes == 0) {
    b.pending = b.expected;
    ++b.phase;
  }
}

inline Bar& bar(void* at) {
  if (!bars.count(at)) fail("a barrier is used before it is initialised");
  return bars[at];
}

float exchange[64][32][6];  // by warp: what its lanes show each other

}  // namespace host

thread_local dim threadIdx, blockIdx, gridDim, blockDim;
alignas(128) char shared[1 << 20];

inline void start_fiber() {
  threadIdx.x = host::current;
  host::body();
  host::fibers[host::current].done = true;
  swapcontext(&host::fibers[host::current].context, &host::scheduler);
}

inline void run_block(int threads, int block, int grid, int shared_bytes, std::function<void()> body) {
  using namespace host;
  memset(shared, 0xff, sizeof shared);
  bars.clear();
  meetings.clear();
  host::body = body;
  blockIdx.x = block;
  gridDim.x = grid;
  blockDim.x = threads;
  fibers = std::vector<Fiber>(threads);
  for (Fiber& f : fibers) {
    f.stack.resize(1 << 16);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, start_fiber, 0);
  }
  const int warps = (threads + 31) / 32;
  std::vector<int> order(warps), asleep(warps, 0);
  for (int i = 0; i < warps; ++i) order[i] = i;
  for (int left = threads; left > 0;) {
    bool moved = false;
    // warps in any order, and now and then one that is left far behind
    std::shuffle(order.begin(), order.end(), host::random);
    if (host::random() % 16 == 0) asleep[order[0]] = host::random() % 256;
    for (int warp : order) {
      if (asleep[warp] > 0) {
        --asleep[warp];
        continue;
      }
      for (int i = 32 * warp; i < min(threads, 32 * warp + 32); ++i) {
        Fiber& f = fibers[i];
        if (f.done || (f.ready && !f.ready())) continue;
        f.ready = nullptr;
        current = i;
        threadIdx.x = i;
        swapcontext(&scheduler, &f.context);
        moved = true;
        left -= f.done;
      }
    }
    if (!copies.empty() && (!moved || host::random() % 2)) {
      const size_t pick = host::random() % copies.size();
      auto copy = copies[pick];
      copies.erase(copies.begin() + pick);
      copy();
      moved = true;
    }
    if (!moved) {
      std::fill(asleep.begin(), asleep.end(), 0);
      bool stuck = true;
      for (Fiber& f : fibers) stuck = stuck && (f.done || (f.ready && !f.ready()));
      if (stuck) fail("deadlock: every thread waits");
    }
  }
  for (size_t i = shared_bytes; i < sizeof shared; ++i)
    if (shared[i] != (char)0xff) fail("shared memory beyond what was asked for was written");
}

// ---- what ptx.cuh has ----

inline float __uint_as_float(word bits) {
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

inline float to_float(half_bits bits) {
  if (BF16) return __uint_as_float((word)bits << 16);
  _Float16 number;
  memcpy(&number, &bits, 2);
  return (float)number;
}

inline half_bits to_half(float number) {
  half_bits bits;
  if (BF16) {
    word w;
    memcpy(&w, &number, 4);
    if (number != number) return 0x7fc0;
    return (half_bits)((w + 0x7fff + ((w >> 16) & 1)) >> 16);
  }
  _Float16 half = (_Float16)number;
  memcpy(&bits, &half, 2);
  return bits;
}

template <word mask, word flip>
inline word masked(word a) { return (a & mask) ^ flip; }

inline word minus(word a, word b) {
  const half_bits low = to_half(to_float(a & 0xffff) - to_float(b & 0xffff));
  return low | (word)to_half(to_float(a >> 16) - to_float(b >> 16)) << 16;
}

inline void __syncwarp() { host::meet(1000 + threadIdx.x / 32, 32); }
inline void __syncthreads() { host::meet(0, blockDim.x); }
template <int number, int threads>
inline void sync_group() { host::meet(number, threads); }

inline void multiply_pair(float (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const word mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(host::exchange[warp][lane], mine, sizeof mine);
  __syncwarp();
  auto number = [&](int lane, int which, int upper) {
    word w;
    memcpy(&w, &host::exchange[warp][lane][which], 4);
    return to_float(upper ? w >> 16 : w & 0xffff);
  };
  float add[4] = {0.f, 0.f, 0.f, 0.f};
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) {
      const int which = k / 8, quad = k % 8 / 2, upper = k % 2, row = i / 2, column = i % 2;
      add[i] += number(4 * g + quad, 2 * which + row, upper) * number(4 * (2 * t + column) + quad, 4 + which, upper);
    }
  __syncwarp();
  for (int i = 0; i < 4; ++i) sums[i] += add[i];
}

inline void check_global(const char* from, int bytes) {
  if (from < host::global_begin || from + bytes > host::global_end) host::fail("weight is read outside of itself");
  if ((uintptr_t)from % 16) host::fail("weight is read at an address that is not a multiple of 16");
}

inline uint4 load_stream(const char* address) {
  check_global(address, 16);
  uint4 v;
  memcpy(&v, address, 16);
  return v;
}

inline void prefetch(const void*) {}
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_begin() {}

inline void barrier_init(barrier* b, int arrivals) { host::bars[b] = {arrivals, arrivals, 0, 0}; }
inline void barrier_init_done() {}

inline void barrier_arrive(barrier* b) {
  host::Bar& bar = host::bar(b);
  if (--bar.pending < 0) host::fail("more arrivals at a barrier than it waits for");
  host::settle(bar);
}

inline void barrier_arrive_expecting(barrier* b, int bytes) {
  host::bar(b).bytes += bytes;
  barrier_arrive(b);
}

inline void barrier_wait(barrier* b, int parity) {
  host::Bar& bar = host::bar(b);
  // as on the device: true once the phase of that parity has ended, that is while the barrier is in one of the other
  host::wait_until([&bar, parity] { return bar.phase % 2 != parity; });
}

inline void copy_bulk(void* to, const char* from, int bytes, barrier* b) {
  check_global(from, bytes);
  if ((uintptr_t)to % 16 || bytes % 16) host::fail("a bulk copy that is not made of 16 bytes");
  memset(to, 0xff, bytes);  // from now until the copy is done it is anybody's guess what is there
  host::copies.push_back([=] {
    memcpy(to, from, bytes);
    host::Bar& bar = host::bar(b);
    bar.bytes -= bytes;
    host::settle(bar);
  });
}
