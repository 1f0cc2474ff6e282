// One token of a Gated DeltaNet layer, all that lies between its projections: short convolution, SiLU, normalised keys
// and queries, gates, the rule, gated norm. The same formulas as layers/gated_delta.py, in one pass per key head.
namespace INTERLACE_ISA {
namespace {

// SiLU(the convolution) of n channels of one sequence, whose window moves on by one token.
template <class T>
void convolve_step(const MixerStep& x, long n, long channel, long count, float* to) {
  const long channels = 2 * x.H * x.K + x.G * x.V;
  const T *now = static_cast<const T*>(x.projected) + n * x.row + channel, *taps = static_cast<const T*>(x.taps) + channel * x.W;
  T* window = static_cast<T*>(x.window) + n * (x.W - 1) * channels + channel;
  for (long d = 0; d < count; d += VW) {
    const long left = least(VW, count - d);
    float tap[VW] = {};
    vec y = {};
    for (long j = 0; j < x.W; j++) {
      T* row = window + j * channels + d;
      vec input = load_up_to(j < x.W - 1 ? row : now + d, left);
      if (j > 0) store_up_to(row - channels, input, left);
      for (long i = 0; i < left; i++) tap[i] = value(taps + (d + i) * x.W + j);
      y += load(tap) * input;
    }
    store(to + d, silu(y));
  }
}

inline float plain_sigmoid(float x) { return 1.0f / (1.0f + __builtin_expf(-x)); }
inline float softplus(float x) { return x > 20.0f ? x : __builtin_log1pf(__builtin_expf(x)); }

template <class T>
void mixer_step_of(const MixerStep& x) {
  const long group = x.G / x.H, ldk = padded(x.K), ldv = padded(x.V), floats = 2 * ldk + 3 * ldv;
  const long key = x.H * x.K, values = 2 * key, gate = values + x.G * x.V, decay = gate + x.G * x.V, beta = decay + x.G;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  parallel(x.N * x.H, x.threads, [&](long index) {
    const long n = index / x.H, h = index % x.H;
    float *q = memory + thread_index() * floats, *k = q + ldk, *v = k + ldk, *out = v + ldv, *weight = out + ldv;
    const T* projected = static_cast<const T*>(x.projected) + n * x.row;
    convolve_step<T>(x, n, h * x.K, x.K, q);
    convolve_step<T>(x, n, key + h * x.K, x.K, k);
    unit_length(q, ldk), unit_length(k, ldk);
    widen(weight, static_cast<const T*>(x.norm), x.V);
    for (long g = h * group; g < (h + 1) * group; g++) {
      convolve_step<T>(x, n, values + g * x.V, x.V, v);
      const float log_decay = -__builtin_expf(x.A_log[g]) * softplus(value(projected + decay + g) + x.dt_bias[g]);
      const float write = (x.negative ? 2.0f : 1.0f) * plain_sigmoid(value(projected + beta + g));
      step_head(x.memory + (n * x.G + g) * x.K * x.V, k, q, v, out, x.K, x.V, log_decay, write, x.scale);
      const float inverse = 1.0f / __builtin_sqrtf(dot(out, out, ldv) / x.V + x.eps);
      const T* opening = projected + gate + g * x.V;
      T* to = static_cast<T*>(x.out) + (n * x.G + g) * x.V;
      along_row(x.V, [&](long d, auto part) {
        vec y = load(weight + d) * (inverse * load(out + d));
        store_part(to, y * silu(load_part(opening, d, x.V, part)), d, x.V, part);
      });
    }
  });
}

}  // namespace

void mixer_step(const MixerStep& x) { x.dtype == DType::bf16 ? mixer_step_of<bf16>(x) : mixer_step_of<float>(x); }

}  // namespace INTERLACE_ISA
