// Matrix-vector product whose loads wait in registers.
//
// A block's rows, tile after tile, are one stream of pieces (16 rows x PIECE_K elements), of which each warp takes every
// WARPS-th. It always has DEPTH pieces in flight: it uses the oldest and loads another one into its place, over the ends
// of tiles and before x is there. Where a warp leaves a tile it keeps its sums; a block adds them up once all warps are
// past a phase of tiles. Warps that run ahead meanwhile write into the slots that `slots` has more than a phase.
//
// Macros beside those of matvec.cuh: DEPTH.
#include "matvec.cuh"

constexpr int THREADS = 32 * WARPS;

struct Cursor {
  int tile, piece;

  __device__ void advance(int pieces) {
    piece += WARPS;
    while (piece >= pieces) { piece -= pieces; ++tile; }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
matvec(const char* weight, const half_bits* x, const float* scale, const half_bits* bias, half_bits* out,
       int n, int k, int m, int weight_stride, int x_stride, int even, int odd, int phase, int slots) {
  extern __shared__ __align__(16) char shared[];
  const int pieces = (k + PIECE_K - 1) / PIECE_K, width = pieces * PIECE_K, stride = width + X_PAD;
  staged_x* staged = (staged_x*)shared;
  float* partial = (float*)(staged + STAGED_ROWS * m * stride);
  word* largest = (word*)(partial + slots * WARPS * m * TILE);

  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const Rows rows = rows_of_block(even, odd);
  const int tiles = (rows.count + TILE - 1) / TILE;
  const char* mine = weight + (long long)(rows.first + g) * weight_stride * WEIGHT_BYTES + t * LANE_BYTES;
  const long long tile_bytes = (long long)TILE * weight_stride * WEIGHT_BYTES;

  auto load = [&](Step (&piece)[SPAN], const Cursor& at) {
    const char* from = mine + at.tile * tile_bytes + at.piece * (SPAN * STEP_BYTES);
    const int left = k - at.piece * PIECE_K - t * LANE_K, there = rows.count - at.tile * TILE - g;
    #pragma unroll
    for (int s = 0; s < SPAN; ++s) {
      piece[s].upper = piece[s].lower = make_uint4(0, 0, 0, 0);
      if (s * STEP_K < left && there > 0) piece[s].upper = load_stream(from + s * STEP_BYTES);
      if (s * STEP_K < left && there > 8) piece[s].lower = load_stream(from + tile_bytes / 2 + s * STEP_BYTES);
    }
  };

  let_next_kernel_begin();
  Step ring[DEPTH][SPAN];
  Cursor fetch = {0, warp};
  if (warp >= pieces) fetch = {warp / pieces, warp % pieces};
  Cursor use = fetch;
  #pragma unroll
  for (int d = 0; d < DEPTH; ++d) {
    load(ring[d], fetch);
    fetch.advance(pieces);
  }

  for (int i = threadIdx.x; i < slots * WARPS * m * TILE; i += THREADS) partial[i] = 0.f;
  prefetch_rows(scale, 4, rows.first, rows.count);
  prefetch_rows(bias, 2, rows.first, rows.count);
  wait_for_previous_kernel();
  const Unit unit = stage_x<THREADS>(staged, largest, x, x_stride, m, k, width, stride, [] { __syncthreads(); });
  __syncthreads();

  const staged_x* staged_mine = staged + staged_column(g, m) * stride + t * LANE_K;
  Sums sums;
  int tile = use.tile;
  auto leave_tile = [&] {
    if (tile < tiles) keep(partial, slot_of(tile, slots), warp, m, sums);  // past the last one there are none but zeros
    sums = Sums();
    tile = use.tile;
  };

  for (int begin = 0; begin < tiles; begin += phase) {
    const int end = min(begin + phase, tiles);
    while (use.tile < end) {
      #pragma unroll
      for (int d = 0; d < DEPTH; ++d) {
        if (use.tile != tile) leave_tile();
        const staged_x* there = staged_mine + use.piece * PIECE_K;
        #pragma unroll
        for (int s = 0; s < SPAN; ++s) multiply_step(sums, ring[d][s], (const uint4*)(there + s * STEP_K));
        use.advance(pieces);
        load(ring[d], fetch);
        fetch.advance(pieces);
      }
    }
    if (use.tile != tile) leave_tile();
    __syncthreads();
    finish<THREADS>(partial, slots, begin, end, rows, out, scale, bias, m, n, unit);
    if (end < tiles) __syncthreads();
  }
}
