// What the kernels take: plain pointers and sizes, checked by Python before they come here.
#pragma once

#include <stddef.h>
#include <stdint.h>

template <int N>
struct Int {
  static constexpr int value = N;
};

struct bf16 {
  uint16_t bits;
};

enum class DType : int { f32 = 0, bf16 = 1 };

// 64-byte aligned memory of the calling thread, kept for its next call; asked for outside parallel regions only.
// Throws std::bad_alloc.
float* scratch_memory(size_t floats);

struct GatedDeltaArguments {
  const void *query, *key, *value;  // [total, H, K], [total, H, K], [total, G, V], heads contiguous
  DType qk_dtype, v_dtype;
  long q_row, k_row, v_row;        // elements from one token to the next
  const float *log_decay, *beta;   // [total, G]
  const int32_t* offsets;          // [N + 1]
  const float* state;              // [N, G, K, V] or null
  long N, H, G, K, V;
  float scale;
  bool normalise;
  int threads;
};

struct GatedDeltaForward : GatedDeltaArguments {
  void* out;  // [total, G, V] in v_dtype
  float *final_state, *snapshots;
};

struct GatedDeltaBackward : GatedDeltaArguments {
  const void* d_out;                       // [total, G, V] in v_dtype
  const float *d_final, *snapshots;        // [N, G, K, V] or null; what forward wrote
  void *d_query, *d_key, *d_value;         // contiguous, in the dtypes of query, key and value
  float *d_log_decay, *d_beta, *d_state;   // d_state null where state is
};

struct GatedDeltaStep : GatedDeltaArguments {  // one token per segment
  void* out;
  float* memory;  // [N, G, K, V], changed in place
};

struct SelectiveScan {
  const void *x, *B, *C;           // [total, D] rows x_row apart; [total, K] rows b_row and c_row apart
  DType dtype;                     // of x, B, C and out
  long x_row, b_row, c_row;
  const float *step, *A, *state;   // [total, D], [D, K], [N, D, K] or null
  const int32_t* offsets;          // [N + 1], or null: every token is a segment
  long N, D, K;
  int threads;
  void* out;                       // [total, D]
  float* final_state;              // [N, D, K]; may be `state`
};

struct ShortConvolution {
  const void *x, *weight, *state;  // [total, D] rows x_row apart, [D, W + biased], [N, W - 1, D] or null
  DType dtype, weight_dtype;       // of x, state, out, windows and their gradients; of weight and its gradient
  long x_row;
  const int32_t* offsets;
  long N, D, W;
  bool activated, biased;          // biased: the last column of weight is added to every output
  int threads;
  void *out, *windows;                  // forward: [total, D], [N, W - 1, D]
  const void *d_out, *d_windows;        // backward; d_windows may be null
  void *d_x, *d_state;                  // d_state null where state is
  float* d_weight;                      // as weight
};

struct RMSNorm {
  // s = x + before; y = (weight + offset) s / sqrt(mean(s^2) + eps) act(gate) + after. Rows of D; absent tensors are null.
  const void *x, *before, *after, *gate, *weight;
  DType x_dtype, before_dtype, after_dtype, gate_dtype, weight_dtype, out_dtype;
  long x_row, before_row, after_row, gate_row;  // from one group of `heads` rows to the next; they lie side by side
  long rows, heads, D;
  float eps, offset;
  bool sigmoid, gate_first, per_head;  // the gate's activation, SiLU if false; s is gated before the norm; weight [heads, D]
  int threads;
  void *out, *sum;  // contiguous; sum in x_dtype, or null
  float* inverse;   // [rows]: 1 / sqrt(...), or null
  // backward: `x` is the sum, and `before` and `after` are not read
  const void *d_out, *d_sum;           // contiguous, in out_dtype and x_dtype; d_sum may be null
  void *d_x, *d_before, *d_gate;       // contiguous, in x_dtype, before_dtype and gate_dtype; d_before and d_gate or null
  float* d_weight;                     // as weight
};

struct SwiGLU {
  const void *gate, *up, *d_out;  // [rows, D], gate and up `row` elements apart from one row to the next
  DType dtype;
  long row, rows, D;
  int threads;
  void *out, *d_gate, *d_up;      // out contiguous; the gradients rows apart as gate and up
};

struct DecayGate {
  const void* x;                // [total, C], tokens `row` elements apart
  const float *dt_bias, *A_log;  // [C], and [G] or null: only the step is wanted then
  DType dtype;                  // of x
  long total, C, G, row;
  float low, high;
  int threads;
  float *log_decay, *step;      // [total, C], contiguous; null for what is not wanted
};

struct Rope {
  const void* x;           // [total, heads, dim], tokens `row` elements apart, heads contiguous
  const float *cos, *sin;  // [total, turning], both halves alike
  DType dtype;
  long total, heads, dim, turning, row;
  float sign;              // of the angles
  int threads;
  void* out;               // contiguous
};

struct CrossEntropy {
  void* logits;            // [rows, D]; replaced by the gradient: (softmax - one-hot) factor, 0 where target is ignored
  const int64_t* targets;  // [rows]
  DType dtype;
  long rows, D, ignored;
  float factor;
  int threads;
  float* losses;           // [rows]: -log p(target)
};

// Weights of 8 or 4 bits in groups of 32 or 64 inputs, as quantised.h says; outputs and inputs are padded.
struct QuantisedWeight {
  const int32_t* words;  // [outputs / 16, groups, group * bits / 32, 16]
  const bf16* scales;    // [outputs / 16, groups, 16]
  const bf16* minima;    // the same with 4 bits, else null
  long bits, group;
};

struct Linear {
  const void *x, *weight, *residual;  // [rows, D] contiguous, [outputs, D] contiguous or null, [rows, outputs] or null
  QuantisedWeight quantised;          // in the weight's place
  DType dtype;
  long rows, outputs, D;
  int threads;
  void* out;
};

struct Experts {
  const void *x, *first, *second;                     // [rows, D], [E, A, D], [E, outputs, I], all contiguous
  QuantisedWeight quantised_first, quantised_second;  // in the place of first and second where these are null
  const int64_t* chosen;           // [rows, k], each below E
  const float* weights;            // [rows, k]
  DType dtype;
  long rows, k, D, A, I, outputs;
  bool gated;                      // A = 2 I and SiLU(gate) up, or A = I and ReLU squared
  int threads;
  void* out;                       // [rows, outputs]
};

struct MixerStep {  // one token of a Gated DeltaNet layer between its projections
  const void* projected;  // [N, columns]: query, key, value, gate, decay and beta side by side
  DType dtype;            // of projected, window, taps, norm and out
  long row;
  const void *taps, *norm;        // [channels, W], [V]
  const float *A_log, *dt_bias;   // [G]
  void* window;                   // [N, W - 1, channels], changed in place
  float* memory;                  // [N, G, K, V], changed in place
  long N, H, G, K, V, W;
  float scale, eps;
  bool negative;
  int threads;
  void* out;                      // [N, G V]
};

struct Attention {  // causal attention of whole sequences over themselves, or of one over its past and itself
  const void *query, *key, *value;  // [total, H, K], [total, J, K], [total, J, V], heads contiguous
  DType dtype;
  long q_row, k_row, v_row;
  const int32_t* offsets;           // [N + 1], of queries
  long N, H, J, K, V, window;       // window 0 for none
  long past;                        // keys before the first query; N is 1 where it is not 0
  float scale;
  int threads;
  void* out;                        // [total, H, V]
  float* weight;                    // [total, H]: the logarithm of the sum of a row's exponentials, or null
  const void* d_out;                // backward: [total, H, V]
  void *d_query, *d_key, *d_value;  // contiguous
};

struct Cache {                      // the memory of one sequence
  int64_t keys, values, capacity;   // addresses, and how many tokens they have space for
};

struct AttentionStep {  // one token for each of N sequences: its key and value are kept, then its query looks back
  const void *query, *key, *value;  // [N, H, K], [N, J, K], [N, J, V], heads contiguous
  DType dtype;                      // of everything but positions
  long q_row, k_row, v_row;
  const Cache* caches;              // [N]: where each sequence's keys [capacity, J, K] and values [capacity, J, V] are
  const int64_t* positions;         // [N]: tokens kept before this one
  long N, H, J, K, V, window;       // window 0 for none; else a ring of `window` slots
  float scale;
  int threads;
  void* out;                        // [N, H V]
};

struct Kernels {
  const char* name;
  void (*gated_delta_forward)(const GatedDeltaForward&);
  void (*gated_delta_backward)(const GatedDeltaBackward&);
  void (*gated_delta_step)(const GatedDeltaStep&);
  void (*state_space_forward)(const GatedDeltaForward&);
  void (*state_space_step)(const GatedDeltaStep&);
  void (*kimi_delta_forward)(const GatedDeltaForward&);
  void (*kimi_delta_step)(const GatedDeltaStep&);
  void (*selective_scan)(const SelectiveScan&);
  void (*short_convolution_forward)(const ShortConvolution&);
  void (*short_convolution_backward)(const ShortConvolution&);
  void (*rms_norm_forward)(const RMSNorm&);
  void (*rms_norm_backward)(const RMSNorm&);
  void (*swiglu_forward)(const SwiGLU&);
  void (*swiglu_backward)(const SwiGLU&);
  void (*rope)(const Rope&);
  void (*decay_gate)(const DecayGate&);
  void (*cross_entropy)(const CrossEntropy&);
  void (*linear)(const Linear&);
  void (*experts)(const Experts&);
  void (*mixer_step)(const MixerStep&);
  void (*attention_step)(const AttentionStep&);
  void (*attention_forward)(const Attention&);
  void (*attention_backward)(const Attention&);
};

constexpr long SNAPSHOT_TOKENS = 256;  // forward keeps a state every so many tokens for backward to start from
