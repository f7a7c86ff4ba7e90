// A Llama's next token on one GPU, a kernel a stage: `embed`, for each layer `qkv` to `down`, `head`, `choose`.
//
// Each begins to read its weights before it waits for the kernel before it. Where the launch lets it begin early, the end of
// one kernel and the beginning of the next overlap.
#include "llama/stages.cuh"

// Run one stage with its own stream of one matrix.
#define STAGE(name, kind, stage_x, body)                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                           \
  name(const Model model, const int layer, const Sampling sampling) {                \
    const Shared shared;                                                             \
    let_next_kernel_begin();                                                         \
    Stream stream(model, shared, kind == HEAD ? 4 * LAYERS : 4 * layer + kind, 1);   \
    stage_x;                                                                         \
    body;                                                                            \
  }

#define NORMED(weights)            \
  const Norm norm(weights);        \
  wait_for_previous_kernel();      \
  norm.apply(shared, FromStream{model})

STAGE(qkv_kernel, QKV, NORMED(model.attention_norm + layer * HIDDEN), qkv(model, shared, stream, layer, fresh(model.position)))
STAGE(out_kernel, OUT, wait_for_previous_kernel(); stage_attention(model, shared), add_to_stream<OUT>(model, shared, stream, layer))
STAGE(gate_up_kernel, GATE_UP, NORMED(model.mlp_norm + layer * HIDDEN), gate_up(model, shared, stream, layer))
STAGE(down_kernel, DOWN, wait_for_previous_kernel(); stage_gated(model, shared), add_to_stream<DOWN>(model, shared, stream, layer))
STAGE(head_kernel, HEAD, NORMED(model.norm), head(model, shared, stream, fresh(model.position), sampling))

// no weights: registers for keys on their way are what it needs
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attend_kernel(const Model model, const int layer, const Sampling) {
  const Shared shared;
  let_next_kernel_begin();
  wait_for_previous_kernel();
  Attend(model, layer, fresh(model.position)).finish(shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
embed_kernel(const Model model, const int, const Sampling) {
  let_next_kernel_begin();
  wait_for_previous_kernel();
  const int position = fresh(model.position);
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < BATCH * HIDDEN; i += gridDim.x * THREADS) {
    const int token = fresh(model.tokens + i / HIDDEN * (CAPACITY + 1) + position);
    model.x[i] = to_float(model.embedding[(long long)token * HIDDEN + i % HIDDEN]);
  }
}

// One block; `blocks` is how many the head had.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
choose_kernel(const Model model, const int blocks, const Sampling) {
  const Shared shared;
  let_next_kernel_begin();
  wait_for_previous_kernel();
  int token[BATCH];
  choose(model, shared, blocks, token);
  write_down(model, fresh(model.position), token);
}
