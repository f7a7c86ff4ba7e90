// A stream of weights: each warp asks the copy engine for the rows it will multiply, long before it can.
//
// The pairs of rows of all matrices are numbered in the order in which a token meets them, across the ends of layers and
// tokens. Warps take turns, so which are a warp's is known before anything is computed, and it asks for them in their order;
// only the ring's size is a limit. While a block waits for others, for the sums of another matrix, for attention, its rings
// fill: memory does not know that anybody waits. A warp's ring is its own: it frees a slot when its lanes have read it, and
// one of them at once asks for the next pair of chunks to come there.
#pragma once
#include "llama/sizes.cuh"

struct Stream {
  const Model& model;
  char* ring;                // of this warp
  barrier* arrived;
  int slot = 0;              // that is read next
  int parity = 0;
  const unsigned stride;     // from a warp's number to its next
  unsigned next, begun = 0;  // what is multiplied next: its number, and that of its matrix' first pair

  // of the lane that asks: what is asked for next
  unsigned asked, behind = 0;  // its number, and the first one behind its matrix
  int matrix, left;            // the matrix, and how many there are from it on
  int offset = 0, row_bytes = 0;
  const char* row = nullptr;

  // The stream of `count` matrices from `first` on; behind the head comes the next token's first.
  __device__ Stream(const Model& model, const Shared& shared, int first, int count)
      : model(model), stride(gridDim.x * WARPS), matrix(first), left(count) {
    const int warp = threadIdx.x / LANES;
    ring = shared.ring + warp * DEPTH * 2 * CHUNK;
    arrived = shared.arrived + warp * DEPTH;
    next = asked = warp * gridDim.x + blockIdx.x;
    if (elected()) {
      for (int i = 0; i < DEPTH; ++i) barrier_init(arrived + i, 1);
      barrier_init_done();
      behind = one_of(PAIRS, kind());
      enter();
      for (int i = 0; i < DEPTH; ++i) ask(i);
    }
    __syncwarp();
  }

  __device__ int kind() const { return matrix == MATRICES - 1 ? HEAD : matrix % 4; }

  // Find the row that is asked for, in whichever matrix it is.
  __device__ void enter() {
    for (; (int)(asked - behind) >= 0; behind += one_of(PAIRS, kind())) {
      if (--left == 0) return;
      if (++matrix == MATRICES) matrix = 0;
    }
    const int pairs = one_of(PAIRS, kind()), layer = kind() == HEAD ? 0 : matrix / 4;
    row_bytes = one_of(WIDTH, kind()) * WEIGHT_BYTES;
    row = model.weights[kind()] + ((long long)(layer + 1) * pairs - (int)(behind - asked)) * 2 * row_bytes;
    offset = 0;
  }

  // Ask for the next two chunks, the same columns of both rows of a pair.
  __device__ void ask(int to) {
    if (left == 0) return;
    const int bytes = min(CHUNK, row_bytes - offset);
    const char* from = row + offset;
    barrier_arrive_expecting(arrived + to, 2 * bytes);
    copy_bulk(ring + to * 2 * CHUNK, from, bytes, arrived + to);
    copy_bulk(ring + to * 2 * CHUNK + CHUNK, from + row_bytes, bytes, arrived + to);
    offset += CHUNK;
    if (offset < row_bytes) return;
    asked += stride;
    enter();
  }

  // The next pair of this warp, counted from the first of the matrix that is multiplied: one behind its end is not in it.
  __device__ int pair() const { return next - begun; }

  // Go to the next matrix; the last had so many pairs.
  __device__ void leave(int pairs) { begun += pairs; }

  // The products of the next pair of rows with each sequence's x, K wide: all lanes get them.
  //
  // Tensor cores do them. A warp takes 32 vectors of each row side by side; of a tile A [16, 16] rows g and g + 8 are what
  // lanes 4 g to 4 g + 3 hold of the two rows, and column g of B [16, 8] is what they hold of x: the wanted sums are on the
  // diagonal of the product, and nothing had to be moved or widened. (int8 is, unless x is fixed-point: then its digits
  // are multiplied one after the other, A is [16, 32] and B [32, 8], and `units` says what a sequence's x counts in.)
  template <int K>
  __device__ void multiply(const uint4* x, const float* units, float (&sums)[BATCH][2]) {
    constexpr int ROW = K * WEIGHT_BYTES, REST = ROW % CHUNK;
    const int lane = threadIdx.x % LANES;
    number tile[BATCH][DIGITS][4] = {};
    x += lane;
    for (int i = 0; i < ROW / CHUNK; ++i) {
      multiply_chunk<CHUNK>(x, tile);
      x += CHUNK / WEIGHT_BYTES / WIDE;
    }
    if constexpr (REST > 0) multiply_chunk<REST>(x, tile);
    const int g = lane / 4;
    const bool diagonal = g / 2 == lane % 4;
    for (int b = 0; b < BATCH; ++b) {
      sums[b][0] = sum_of_warp(!diagonal ? 0.f : g % 2 ? value(tile[b], 1) : value(tile[b], 0));
      sums[b][1] = sum_of_warp(!diagonal ? 0.f : g % 2 ? value(tile[b], 3) : value(tile[b], 2));
      if (FIXED)
        for (float& sum : sums[b]) sum *= units[b];
    }
    next += stride;
  }

  __device__ static float value(const number (&tile)[DIGITS][4], int i) {
    return DIGITS == 1 ? (float)tile[0][i] : (float)tile[0][i] + 256.f * (float)tile[DIGITS - 1][i];
  }

  template <int BYTES>
  __device__ void multiply_chunk(const uint4* x, number (&tile)[BATCH][DIGITS][4]) {
    constexpr int VECTORS = BYTES / VECTOR, TURNS = (VECTORS + LANES - 1) / LANES;
    const int lane = threadIdx.x % LANES;
    barrier_wait(arrived + slot, parity);
    const uint4* first = (const uint4*)(ring + slot * 2 * CHUNK) + lane;
    const uint4* second = first + CHUNK / VECTOR;
    // lanes behind the end multiply zeros: what lies there may be no number
    const auto live = [&](int turn) { return (turn + 1) * LANES <= VECTORS || turn * LANES + lane < VECTORS; };
    uint4 w0[TURNS], w1[TURNS];
    #pragma unroll
    for (int i = 0; i < TURNS; ++i) {
      w0[i] = w1[i] = make_uint4(0, 0, 0, 0);
      if (live(i)) { w0[i] = first[i * LANES]; w1[i] = second[i * LANES]; }
    }
    // the slot has been read by all lanes: it can be filled again while they multiply
    __syncwarp();
    if (elected()) ask(slot);
    if (++slot == DEPTH) { slot = 0; parity ^= 1; }
    #pragma unroll
    for (int i = 0; i < TURNS; ++i) {
      #pragma unroll
      for (int b = 0; b < BATCH; ++b) {
        const uint4* there = x + b * X_VECTORS + i * X_BLOCK;
        uint4 x0 = make_uint4(0, 0, 0, 0), x1 = x0;
        if (live(i)) x0 = there[0];
        if (live(i) && INT8) x1 = there[LANES];
        multiply_vector(tile[b], w0[i], w1[i], x0, x1);
      }
    }
  }

  __device__ static void multiply_vector(
      number (&tile)[DIGITS][4], const uint4& w0, const uint4& w1, const uint4& x0, const uint4& x1) {
#if FIXED
    multiply_bytes(tile[0], w0.x, w1.x, w0.y, w1.y, x0.x, x0.y);
    multiply_bytes(tile[1], w0.x, w1.x, w0.y, w1.y, x1.x, x1.y);
    multiply_bytes(tile[0], w0.z, w1.z, w0.w, w1.w, x0.z, x0.w);
    multiply_bytes(tile[1], w0.z, w1.z, w0.w, w1.w, x1.z, x1.w);
#elif INT8
    multiply_word(tile[0], w0.x, w1.x, x0.x, x0.y);
    multiply_word(tile[0], w0.y, w1.y, x0.z, x0.w);
    multiply_word(tile[0], w0.z, w1.z, x1.x, x1.y);
    multiply_word(tile[0], w0.w, w1.w, x1.z, x1.w);
#else
    multiply_tile(tile[0], w0.x, w1.x, w0.y, w1.y, x0.x, x0.y);
    multiply_tile(tile[0], w0.z, w1.z, w0.w, w1.w, x0.z, x0.w);
#endif
  }

  // Four int8 of each row: bytes 0 and 2 with x's first word, 1 and 3 with its second.
  __device__ static void multiply_word(float (&tile)[4], word w0, word w1, word even, word odd) {
    multiply_tile(tile, widened(w0), widened(w1), widened(w0 >> 8), widened(w1 >> 8), even, odd);
  }

  // Bytes 0 and 2, numbers with a sign, as bfloat16: as 128 + the low seven bits, less 128 or, where the sign bit says
  // -128, 256. All of them are exact.
  __device__ static word widened(word bytes) {
    return minus(masked<0x007f007f, 0x43004300>(bytes), masked<0x00800080, 0x43004300>(bytes));
  }
};

// Put vector i of a sequence's x where `multiply` finds it. With int8 weights a lane takes two vectors at once: they lie so
// that lanes read side by side, and the numbers of each four in the order 0 2 1 3.
__device__ inline void put(const Shared& shared, int b, int i, uint4 vector) {
  uint4* x = shared.x + b * X_VECTORS;
#if INT8
  x[(i & ~(X_BLOCK - 1)) | (i & 1) * LANES | (i % X_BLOCK) / 2] =
      make_uint4(__byte_perm(vector.x, vector.y, 0x5410), __byte_perm(vector.x, vector.y, 0x7632),
                 __byte_perm(vector.z, vector.w, 0x5410), __byte_perm(vector.z, vector.w, 0x7632));
#else
  x[i] = vector;
#endif
}
