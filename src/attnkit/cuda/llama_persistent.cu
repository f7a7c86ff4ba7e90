// A Llama's next tokens on one GPU in one kernel: a block a processor, which stays for all stages and for `count` tokens.
//
// Blocks meet between stages; weights stream across the meetings.
#include "llama/stages.cuh"

// Where all blocks meet. Arrivals are counted through all launches and never reset; a difference of 32 bits tells early
// from late.
struct Meeting {
  unsigned* counter;
  unsigned target;

  __device__ explicit Meeting(unsigned* counters) : counter(counters), target(fresh(counters + 1)) {}

  __device__ void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) signal(counter);
    target += gridDim.x;
  }

  __device__ void wait() const {
    if (threadIdx.x == 0)
      while ((int)(hear(counter) - target) < 0) {}
    __syncthreads();
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
decode(const Model model, const int count, const Sampling sampling) {
  const Shared shared;
  Meeting meeting(model.meeting);
  Stream stream(model, shared, 0, count * MATRICES);
  int position = fresh(model.position);
  int token[BATCH];
  for (int b = 0; b < BATCH; ++b) token[b] = fresh(model.tokens + b * (CAPACITY + 1) + position);

  for (int i = 0; i < count; ++i, ++position) {
    // each block begins a part of the residual stream; before anybody adds to it all blocks have met
    const Share share = share_of(HIDDEN / 2);
    for (int b = 0; b < BATCH; ++b)
      for (int at = 2 * share.first + threadIdx.x; at < 2 * share.last; at += THREADS)
        model.x[b * HIDDEN + at] = to_float(model.embedding[(long long)token[b] * HIDDEN + at]);
    for (int layer = 0; layer < LAYERS; ++layer) {
      {
        const Norm norm(model.attention_norm + layer * HIDDEN);
        if (layer == 0) {
          norm.apply(shared, FromEmbedding{model, token});
        } else {
          meeting.wait();
          norm.apply(shared, FromStream{model});
        }
      }
      qkv(model, shared, stream, layer, position);
      meeting.arrive();
      {
        Attend attend(model, layer, position);
        meeting.wait();
        attend.finish(shared);
      }
      meeting.arrive();
      meeting.wait();
      stage_attention(model, shared);
      add_to_stream<OUT>(model, shared, stream, layer);
      meeting.arrive();
      {
        const Norm norm(model.mlp_norm + layer * HIDDEN);
        meeting.wait();
        norm.apply(shared, FromStream{model});
      }
      gate_up(model, shared, stream, layer);
      meeting.arrive();
      meeting.wait();
      stage_gated(model, shared);
      add_to_stream<DOWN>(model, shared, stream, layer);
      meeting.arrive();
    }
    const Norm norm(model.norm);
    meeting.wait();
    norm.apply(shared, FromStream{model});
    head(model, shared, stream, position, sampling);
    meeting.arrive();
    meeting.wait();
    choose(model, shared, gridDim.x, token);
    if (blockIdx.x == 0) write_down(model, position, token);
  }
  // every block has read it long ago
  if (blockIdx.x == 0 && threadIdx.x == 0) model.meeting[1] = meeting.target;
}
