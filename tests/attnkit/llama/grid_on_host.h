// Runs kernels whose blocks wait for each other, from their own source, on the host: every thread of every block is a
// fiber, one of them runs at a time, and a seed decides which is next. Stands in for cuda/ptx.cuh and cuda/llama/device.cuh.
// (../cuda_on_host.h does the same a block after the other.)
//
// What it finds: what some order of lanes, warps, blocks and copies breaks; shared memory that is read before it was
// written or copied (it holds NaN until then); copies that leave their matrix; deadlocks. What it cannot: anything about
// time, and what a GPU's memory model lets happen between two points where threads meet.
#include <ucontext.h>

#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#define BF16 1
#include "../device_on_host.h"

namespace host {

struct Meeting { int arrived = 0; std::vector<int> waiting; };
struct Copies { int phase = 0, expected = 0, done = 0; bool armed = false; std::vector<int> waiting; };

struct Lane {
  ucontext_t context;
  std::vector<char> stack;
  int thread, block;
};

std::vector<Lane> lanes;
std::vector<int> runnable;
std::vector<std::function<void()>> copies;  // what the copy engine has been asked for and has not done
std::vector<std::vector<char>> shared;      // by block
std::map<std::pair<int, int>, Meeting> meetings;
std::map<void*, Copies> barriers;
std::vector<std::pair<const char*, const char*>> readable;
std::mt19937 random;
std::function<void()> body;
ucontext_t scheduler;
int current, threads, finished;
long idle;  // polls since anything else happened
std::string failure;
uint64_t shown[1 << 16][2][6];  // by lane, in turn: what the lanes of a warp show each other
std::vector<int> turn;          // by lane

inline void leave() { swapcontext(&lanes[current].context, &scheduler); }

inline void fail(const std::string& what) {
  failure = what;
  leave();  // for good
}

inline void wake(std::vector<int>& waiting) {
  runnable.insert(runnable.end(), waiting.begin(), waiting.end());
  waiting.clear();
  idle = 0;
}

inline void meet(int which, int count) {  // of this block
  Meeting& m = meetings[{lanes[current].block, which}];
  if (++m.arrived == count) {
    m.arrived = 0;
    wake(m.waiting);
    return;
  }
  m.waiting.push_back(current);
  leave();
}

inline void poll() {  // somebody else has to do something
  if (++idle > 1000000) fail("deadlock: blocks wait for an arrival that does not come");
  runnable.push_back(current);
  leave();
}

inline Copies& at(void* b) {
  if (!barriers.count(b)) fail("a barrier is used before it is initialised");
  return barriers[b];
}

inline void settle(Copies& b) {
  if (!b.armed || b.done != b.expected) return;
  ++b.phase;
  b.armed = false;
  b.expected = b.done = 0;
  wake(b.waiting);
}

inline int warp() { return threadIdx.x / 32; }

// What the lanes of this warp show, once all have shown theirs.
inline uint64_t (*show(const uint64_t* mine, int count))[2][6] {
  const int t = turn[current] ^= 1;
  memcpy(shown[current][t], mine, count * sizeof *mine);
  meet(1 + warp(), 32);
  return shown + (current - threadIdx.x % 32);
}

inline void resume(int lane) {
  current = lane;
  threadIdx.x = lanes[lane].thread;
  blockIdx.x = lanes[lane].block;
  swapcontext(&scheduler, &lanes[lane].context);
}

inline void begin() {
  body();
  ++finished;
  idle = 0;
  leave();
}

// Run a grid; what went wrong, or nothing.
inline std::string run(int grid, int block, int shared_bytes, unsigned seed, std::function<void()> kernel) {
  random.seed(seed);
  body = kernel;
  threads = block;
  finished = idle = 0;
  failure.clear();
  copies.clear();
  meetings.clear();
  barriers.clear();
  gridDim.x = grid;
  blockDim.x = block;
  shared.assign(grid, std::vector<char>(shared_bytes + 256, (char)0xff));
  turn.assign(grid * block, 0);
  if (lanes.size() < (size_t)grid * block) lanes.resize(grid * block);
  runnable.clear();
  for (int i = 0; i < grid * block; ++i) {
    Lane& lane = lanes[i];
    lane.thread = i % block;
    lane.block = i / block;
    lane.stack.resize(1 << 15);
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = lane.stack.size();
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, begin, 0);
    runnable.push_back(i);
  }
  while (finished < grid * block && failure.empty()) {
    if (!copies.empty() && (runnable.empty() || random() % 32 == 0)) {
      std::swap(copies[random() % copies.size()], copies.back());
      const auto copy = copies.back();
      copies.pop_back();
      copy();
      idle = 0;
      continue;
    }
    if (runnable.empty()) return "deadlock: every thread waits";
    std::swap(runnable[random() % runnable.size()], runnable.back());
    const int lane = runnable.back();
    runnable.pop_back();
    resume(lane);
  }
  if (failure.empty() && !copies.empty()) failure = "a copy is on its way that nobody waits for";
  for (auto& memory : shared)
    for (int i = shared_bytes + 128; i < (int)memory.size(); ++i)
      if (failure.empty() && memory[i] != (char)0xff) failure = "shared memory beyond what was asked for was written";
  return failure;
}

}  // namespace host

// ---- what cuda/ptx.cuh has ----

inline void __syncwarp() { host::meet(1 + host::warp(), 32); }
inline void __syncthreads() { host::meet(0, host::threads); }

inline bool elected() {
  host::meet(1 + host::warp(), 32);  // all lanes must ask
  return threadIdx.x % 32 == 0;
}

inline void barrier_init(barrier* b, int arrivals) {
  if (arrivals != 1) host::fail("barriers of one arrival are all that is known here");
  host::barriers[b] = {};
}

inline void barrier_arrive_expecting(barrier* b, int bytes) {
  host::Copies& copies = host::at(b);
  if (copies.armed) host::fail("a barrier is armed twice in a phase");
  copies.armed = true;
  copies.expected = bytes;
  host::settle(copies);
}

inline void barrier_wait(barrier* b, int parity) {
  host::Copies& copies = host::at(b);
  if (copies.phase % 2 != parity) return;
  copies.waiting.push_back(host::current);
  host::leave();
}

inline void copy_bulk(void* to, const char* from, int bytes, barrier* b) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16) host::fail("a bulk copy that is not made of 16 bytes");
  bool inside = false;
  for (const auto& [first, last] : host::readable) inside = inside || (from >= first && from + bytes <= last);
  if (!inside) host::fail("a copy reads outside of its matrix");
  memset(to, 0xff, bytes);  // from now until the copy is done it is anybody's guess what is there
  host::copies.push_back([=] {
    memcpy(to, from, bytes);
    host::Copies& copies = host::barriers[b];
    copies.done += bytes;
    host::settle(copies);
  });
}

// ---- what cuda/llama/device.cuh has ----

inline float as_float(word bits) { return __uint_as_float(bits); }
inline word as_bits(float f) { return __float_as_uint(f); }
inline float infinity() { return INFINITY; }
inline float quotient(float a, float b) { return a / b; }

inline char* shared_memory() {
  return (char*)(((uintptr_t)host::shared[blockIdx.x].data() + 127) / 128 * 128);
}

inline void multiply_tile(float (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  const uint64_t mine[6] = {a0, a1, a2, a3, b0, b1};
  const auto lanes = host::show(mine, 6);
  const int turn = host::turn[host::current];
  add_product(sums, [&](int lane, int which, int upper) { return to_float(lanes[lane][turn][which] >> 16 * upper & 0xffff); });
}

inline void multiply_bytes(int (&sums)[4], word a0, word a1, word a2, word a3, word b0, word b1) {
  const uint64_t mine[6] = {a0, a1, a2, a3, b0, b1};
  const auto lanes = host::show(mine, 6);
  const int turn = host::turn[host::current], g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const auto byte = [&](int lane, int which, int k) { return (int)(signed char)(lanes[lane][turn][which] >> 8 * (k % 4)); };
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 32; ++k)
      sums[i] += byte(4 * g + k % 16 / 4, lower + k / 16 * 2, k) * byte(4 * column + k % 16 / 4, 4 + k / 16, k);
  }
}

inline word largest_of_warp(word value) {
  const uint64_t mine = value;
  const auto lanes = host::show(&mine, 1);
  word most = 0;
  for (int i = 0; i < 32; ++i) most = max(most, (word)lanes[i][host::turn[host::current]][0]);
  return most;
}

inline unsigned long long from_lane_xor(unsigned long long value, int bits) {
  const uint64_t mine = value;
  const auto lanes = host::show(&mine, 1);
  return lanes[threadIdx.x % 32 ^ bits][host::turn[host::current]][0];
}

inline float from_lane_xor(float value, int bits) {
  return as_float((word)from_lane_xor((unsigned long long)as_bits(value), bits));
}

inline float sum_of_warp(float value) {
  const uint64_t mine = as_bits(value);
  const auto lanes = host::show(&mine, 1);
  float sum = 0.f;
  for (int i = 0; i < 32; ++i) sum += as_float((word)lanes[i][host::turn[host::current]][0]);
  return sum;
}

template <class T>
inline T fresh(const T* address) { return *address; }

inline void signal(unsigned* counter) { ++*counter; host::idle = 0; }

inline unsigned hear(const unsigned* counter) {
  host::poll();
  return *counter;
}
