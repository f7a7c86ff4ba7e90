// Runs a CUDA kernel's own source on the host: blocks one after the other, the threads of a block as fibers of which one
// runs at a time, in an order that a seed shuffles. Stands in for cuda/ptx.cuh and for what NVRTC knows by itself.
//
// What it finds: wrong indices (global reads and shared memory have bounds), what some order of warps breaks, reads of
// shared memory that nobody has written (it begins as NaN), and deadlocks (all fibers wait). What it cannot: anything
// about time, and what a GPU's memory model lets happen between two points where threads meet.
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <vector>

#include "device_on_host.h"

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

inline void __syncwarp() { host::meet(1000 + threadIdx.x / 32, 32); }
inline void __syncthreads() { host::meet(0, blockDim.x); }
template <int number, int threads>
inline void sync_group() { host::meet(number, threads); }

inline void multiply_pair(float (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const word mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(host::exchange[warp][lane], mine, sizeof mine);
  __syncwarp();
  float add[4] = {0.f, 0.f, 0.f, 0.f};
  add_product(add, [&](int lane, int which, int upper) {
    word w;
    memcpy(&w, &host::exchange[warp][lane][which], 4);
    return to_float(upper ? w >> 16 : w & 0xffff);
  });
  __syncwarp();
  for (int i = 0; i < 4; ++i) sums[i] += add[i];
}

inline void multiply_bytes(int (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const word mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(host::exchange[warp][threadIdx.x % 32], mine, sizeof mine);
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 32; ++k) {
      signed char a[24], b[24];
      memcpy(a, host::exchange[warp][4 * g + k % 16 / 4], 24);
      memcpy(b, host::exchange[warp][4 * column + k % 16 / 4], 24);
      sums[i] += a[4 * (lower + k / 16 * 2) + k % 4] * b[4 * (4 + k / 16) + k % 4];
    }
  }
  __syncwarp();
}

inline word largest_of_warp(word mine) {
  const int warp = threadIdx.x / 32;
  memcpy(host::exchange[warp][threadIdx.x % 32], &mine, 4);
  __syncwarp();
  word most = 0, theirs;
  for (int lane = 0; lane < 32; ++lane) {
    memcpy(&theirs, host::exchange[warp][lane], 4);
    most = max(most, theirs);
  }
  __syncwarp();
  return most;
}

inline float plus_neighbour(float mine) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  host::exchange[warp][lane][0] = mine;
  __syncwarp();
  const float both = mine + host::exchange[warp][lane ^ 1][0];
  __syncwarp();
  return both;
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

inline void barrier_init(barrier* b, int arrivals) { host::bars[b] = {arrivals, arrivals, 0, 0}; }

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
