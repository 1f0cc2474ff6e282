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

struct ShortConvolution {
  const void *x, *weight, *state;  // [total, D] rows x_row apart, [D, W], [N, W - 1, D] or null
  DType dtype, weight_dtype;       // of x, state, out, windows and their gradients; of weight and its gradient
  long x_row;
  const int32_t* offsets;
  long N, D, W;
  bool activated;
  int threads;
  void *out, *windows;                  // forward: [total, D], [N, W - 1, D]
  const void *d_out, *d_windows;        // backward; d_windows may be null
  void *d_x, *d_state;                  // d_state null where state is
  float* d_weight;                      // [D, W]
};

struct Kernels {
  const char* name;
  int vector_floats;
  void (*gated_delta_forward)(const GatedDeltaForward&);
  void (*gated_delta_backward)(const GatedDeltaBackward&);
  void (*gated_delta_step)(const GatedDeltaStep&);
  void (*short_convolution_forward)(const ShortConvolution&);
  void (*short_convolution_backward)(const ShortConvolution&);
};

constexpr long SNAPSHOT_TOKENS = 256;  // forward keeps a state every so many tokens for backward to start from
