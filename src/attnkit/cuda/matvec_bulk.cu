// Matrix-vector product whose loads wait in shared memory.
//
// A few warps do nothing but ask the copy engine (cp.async.bulk, Hopper and later) for a block's rows, 16 at a time and
// PIECE_K elements of each, into a ring of STAGES; the others multiply what has arrived, each a share of every stage.
// What is in flight costs no registers, and the ring is full long before x is there. It takes several warps to ask: the
// machine starts a copy for one lane after the other, and one warp that starts them all is slower than the memory.
//
// Macros beside those of matvec.cuh: STAGES, and SPAN steps of each row in a stage.
#include "matvec.cuh"

constexpr int LOADERS = 4;
constexpr int LOADER_ROWS = TILE / LOADERS;
constexpr int THREADS = 32 * (WARPS + LOADERS);
constexpr int STEPS = (SPAN + WARPS - 1) / WARPS;  // of a stage, a warp
constexpr int STAGE_ROW = PIECE_K * WEIGHT_BYTES;
constexpr int STAGE_PITCH = STAGE_ROW + STEP_BYTES;  // no two rows of a tile in the same banks

// All warps but those that load, which are ahead of them or gone.
__device__ inline void sync_multiplying() { sync_group<1, 32 * WARPS>(); }

// Which stage of the ring, and how often it has been used.
struct Turn {
  int stage = 0, parity = 0;

  __device__ void advance() {
    if (++stage == STAGES) { stage = 0; parity ^= 1; }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
matvec(const char* weight, const half_bits* x, const float* scale, const half_bits* bias, half_bits* out,
       int n, int k, int m, int weight_stride, int x_stride, int even, int odd, int phase, int slots) {
  extern __shared__ __align__(128) char shared[];
  const int parts = (k + PIECE_K - 1) / PIECE_K, width = parts * PIECE_K, stride = width + X_PAD;
  char* ring = shared;
  barrier* full = (barrier*)(ring + STAGES * TILE * STAGE_PITCH);
  barrier* empty = full + STAGES;
  staged_x* staged = (staged_x*)(full + 2 * STAGES);
  float* partial = (float*)(staged + STAGED_ROWS * m * stride);
  word* largest = (word*)(partial + slots * WARPS * m * TILE);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Rows rows = rows_of_block(even, odd);
  const int tiles = (rows.count + TILE - 1) / TILE;

  let_next_kernel_begin();
  Turn turn;
  int issued = 0, tile = 0, part = 0;
  const int total = tiles * parts, loader_row = (warp - WARPS) * LOADER_ROWS;
  auto issue = [&] {
    const int there = min(max(rows.count - tile * TILE - loader_row, 0), LOADER_ROWS);
    const int bytes = min(k - part * PIECE_K, PIECE_K) * WEIGHT_BYTES;
    if (lane == 0) barrier_arrive_expecting(full + turn.stage, there * bytes);
    __syncwarp();
    if (lane < there) {
      const int row = loader_row + lane;
      copy_bulk(ring + (turn.stage * TILE + row) * STAGE_PITCH,
                weight + (long long)(rows.first + tile * TILE + row) * weight_stride * WEIGHT_BYTES + (long long)part * STAGE_ROW,
                bytes, full + turn.stage);
    }
    turn.advance();
    if (++part == parts) { part = 0; ++tile; }
    ++issued;
  };
  if (warp >= WARPS) {
    if (threadIdx.x == 32 * WARPS) {
      for (int i = 0; i < STAGES; ++i) {
        barrier_init(full + i, LOADERS);
        barrier_init(empty + i, WARPS);
      }
      barrier_init_done();
    }
    sync_group<2, 32 * LOADERS>();
    // the ring is empty at first: it can be filled before any other warp is there
    while (issued < min(STAGES, total)) issue();
  }

  Unit unit;
  if (warp < WARPS) {
    prefetch_rows(scale, 4, rows.first, rows.count);
    prefetch_rows(bias, 2, rows.first, rows.count);
    wait_for_previous_kernel();
    // not by the warps that load: what they asked for of x would come behind all the weights that the ring holds
    unit = stage_x<32 * WARPS>(staged, largest, x, x_stride, m, k, width, stride, sync_multiplying);
  }
  __syncthreads();

  if (warp >= WARPS) {
    while (issued < total) {
      barrier_wait(empty + turn.stage, turn.parity ^ 1);
      issue();
    }
    return;
  }

  const staged_x* staged_mine = staged + staged_column(g, m) * stride + t * LANE_K;
  for (int begin = 0; begin < tiles; begin += phase) {
    const int end = min(begin + phase, tiles);
    for (tile = begin; tile < end; ++tile) {
      Sums sums;
      for (part = 0; part < parts; ++part) {
        barrier_wait(full + turn.stage, turn.parity);
        const char* mine = ring + (turn.stage * TILE + g) * STAGE_PITCH + t * LANE_BYTES;
        const int left = k - part * PIECE_K - t * LANE_K;
        Step w[STEPS];
        #pragma unroll
        for (int i = 0; i < STEPS; ++i) {
          const int s = warp + i * WARPS;
          w[i].upper = w[i].lower = make_uint4(0, 0, 0, 0);
          if ((SPAN % WARPS == 0 || s < SPAN) && s * STEP_K < left) {
            w[i].upper = *(const uint4*)(mine + s * STEP_BYTES);
            w[i].lower = *(const uint4*)(mine + 8 * STAGE_PITCH + s * STEP_BYTES);
          }
        }
        // what is in registers need not be kept: the next rows can come while these are multiplied
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + turn.stage);
        turn.advance();
        #pragma unroll
        for (int i = 0; i < STEPS; ++i) {
          const int s = warp + i * WARPS;
          if (SPAN % WARPS == 0 || s < SPAN)
            multiply_step(sums, w[i], (const uint4*)(staged_mine + part * PIECE_K + s * STEP_K));
        }
      }
      keep(partial, slot_of(tile, slots), warp, m, sums);
    }
    sync_multiplying();
    finish<32 * WARPS>(partial, slots, begin, end, rows, out, scale, bias, m, n, unit);
    if (end < tiles) sync_multiplying();
  }
}
