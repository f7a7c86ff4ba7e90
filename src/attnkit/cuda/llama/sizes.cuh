// The sizes of one Llama on one GPU, all known when the kernels are compiled, and what a launch is given.
//
// Macros: LAYERS HIDDEN INTERMEDIATE HQ HKV D VOCAB EPSILON of the model, BATCH sequences with caches of CAPACITY tokens,
// SPLITS of a key head's keys, INT8 weights or not; and of the machine WARPS of a block, CHUNK bytes of a row that are asked
// for at once, DEPTH pairs of chunks that a warp has on their way, and whether x is FIXED-point beside int8 weights.
#pragma once
#include "llama/device.cuh"

// The matrices of a layer in the order in which a token meets them, and the head. Their rows come in pairs that one warp
// multiplies: the two elements that a rotation turns, gate and up of one number, two neighbours of the residual stream.
enum Kind { QKV, OUT, GATE_UP, DOWN, HEAD, KINDS };

constexpr int PAIRS[KINDS] = {(HQ + 2 * HKV) * D / 2, HIDDEN / 2, INTERMEDIATE, HIDDEN / 2, VOCAB / 2};
constexpr int WIDTH[KINDS] = {HIDDEN, HQ * D, HIDDEN, INTERMEDIATE, HIDDEN};

// The same of a kind that is not known before: from registers, for a table would be read from memory.
__device__ inline int one_of(const int (&numbers)[KINDS], int kind) {
  int number = numbers[0];
  #pragma unroll
  for (int i = 1; i < KINDS; ++i)
    if (kind == i) number = numbers[i];
  return number;
}

constexpr int WEIGHT_BYTES = INT8 ? 1 : 2;
constexpr int LANES = 32;
constexpr int THREADS = LANES * WARPS;
constexpr int VECTOR = 16;                         // bytes that a lane takes at once
constexpr int WIDE = VECTOR / 2;                   // activations of a vector
constexpr int MATRICES = 4 * LAYERS + 1;           // that a token meets
constexpr int GROUP = HQ / HKV;                    // query heads that read one key head

constexpr int WIDEST = HIDDEN > INTERMEDIATE ? (HIDDEN > HQ * D ? HIDDEN : HQ * D)
                                             : (INTERMEDIATE > HQ * D ? INTERMEDIATE : HQ * D);
constexpr int X_BLOCK = INT8 ? 2 * LANES : LANES;  // vectors of x that a warp takes at once
constexpr int X_VECTORS = (WIDEST / WIDE + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);  // of one sequence, padded

// What a product adds up: whole numbers where x is fixed-point, of two digits with a sign to the base 256.
#if FIXED
typedef int number;
constexpr int DIGITS = 2;
constexpr float LARGEST = 127 * 256;               // of a row: the upper digit has room for a carry
#else
typedef float number;
constexpr int DIGITS = 1;
#endif

constexpr int READERS = D / WIDE;                  // lanes that share a key
constexpr int KEYS = LANES / READERS;              // that a warp reads side by side
constexpr int PARTS = WARPS * KEYS;                // of a split, each with its own softmax

static_assert(HIDDEN % 16 == 0 && INTERMEDIATE % 16 == 0 && (HQ * D) % 16 == 0, "rows are made of 16 bytes");
static_assert(VOCAB % 2 == 0, "rows come in pairs");
static_assert(D == 16 || D == 32 || D == 64 || D == 128 || D == 256, "lanes share a key evenly");
static_assert(CHUNK % (VECTOR * LANES) == 0, "a chunk is read by whole warps");
static_assert(HIDDEN < 1 << 22, "numbers of the residual stream times blocks are 32 bits");
static_assert(BATCH <= LANES, "a lane a sequence finishes a sum");
static_assert(WARPS <= 16, "scratch has room for so many");
static_assert(INT8 || !FIXED, "fixed-point x is for int8 weights");

struct Model {
  const char* weights[KINDS];        // [layers, rows, columns]
  const float* scales[KINDS];        // [layers, rows]; of int8 weights
  const half_bits* attention_norm;   // [layers, hidden]
  const half_bits* mlp_norm;         // [layers, hidden]
  const half_bits* norm;             // [hidden]
  const half_bits* embedding;        // [vocab, hidden]
  const float2* turns;               // [capacity, d / 2]: cos and sin
  half_bits* k_cache;                // [layers, b, capacity, hkv, d]
  half_bits* v_cache;
  float* x;                          // [b, hidden]: the residual stream
  float* q;                          // [b, hq, d]: turned, and multiplied with the scale of scores in base 2
  float* partial;                    // [b, hq, splits, d]: sums of values
  float2* stats;                     // [b, hq, splits]: the largest score in base 2, and the sum of weights
  half_bits* gated;                  // [b, intermediate]
  float* logits;                     // [b, vocab]
  unsigned long long* best;          // [blocks, warps, b]: the token chosen so far, see `ranked`
  int* tokens;                       // [b, capacity + 1]
  int* position;                     // of the token that is read next
  unsigned* meeting;                 // [2]: arrivals of blocks at all meetings, and those before this launch
};

struct Sampling {
  float temperature;                 // 0: the likeliest token
  unsigned seed;
};

// Things from `first` on, before `last`.
struct Share { int first, last; };

// This block's: those of all blocks differ by one at most.
__device__ inline Share share_of(int things) {
  const unsigned block = blockIdx.x, blocks = gridDim.x;
  return {(int)(block * things / blocks), (int)((block + 1) * things / blocks)};
}

// Shared memory of a block, from its start on.
struct Shared {
  uint4* x;           // [b, X_VECTORS] in bfloat16; between matrices scratch for attention
  float* scratch;     // [64]: sums over warps, largest ones from 16 on, from 32 on what a unit of a sequence's x is
  barrier* arrived;   // [warps, depth]
  char* ring;         // [warps, depth, 2, CHUNK]

  static constexpr int X_BYTES = BATCH * X_VECTORS * VECTOR;
  static constexpr int PARTS_BYTES = PARTS * (D + 2) * 4;
  static constexpr int FRONT = ((X_BYTES > PARTS_BYTES ? X_BYTES : PARTS_BYTES) + 127) / 128 * 128;
  static constexpr int BARRIERS = (WARPS * DEPTH * 8 + 127) / 128 * 128;
  static constexpr int BYTES = FRONT + 256 + BARRIERS + WARPS * DEPTH * 2 * CHUNK;

  __device__ Shared() {
    char* begin = shared_memory();
    x = (uint4*)begin;
    scratch = (float*)(begin + FRONT);
    arrived = (barrier*)(begin + FRONT + 256);
    ring = begin + FRONT + 256 + BARRIERS;
  }
};
