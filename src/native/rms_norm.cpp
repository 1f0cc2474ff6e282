// Root-mean-square norm of rows, with what usually stands around it: a sum before, a gate and a sum after.
namespace INTERLACE_ISA {
namespace {

constexpr long BLOCK_ELEMENTS = 16384;

inline long block_rows(const RMSNorm& x) { return most(1, BLOCK_ELEMENTS / x.D); }

// One row of an operand; rows of one token's heads lie side by side, tokens `stride` apart.
inline const void* row_of(const void* p, DType dtype, const RMSNorm& x, long r, long stride) {
  return element(p, dtype, r / x.heads * stride + r % x.heads * x.D);
}

// The weights as floats, one row of `ld` for each that differs.
float* lay_weight(const RMSNorm& x, float* to, long ld) {
  for (long h = 0; h < (x.per_head ? x.heads : 1); h++)
    along_row(x.D, [&](long d, auto part) {
      const void* row = element(x.weight, x.weight_dtype, h * x.D);
      store(to + h * ld + d, x.offset + load_part(row, x.weight_dtype, d, x.D, part));
    });
  return to;
}

inline vec opened(const RMSNorm& x, vec gate) { return x.sigmoid ? sigmoid(gate) : silu(gate); }

inline vec slope(const RMSNorm& x, vec gate) {
  const vec y = sigmoid(gate);
  return x.sigmoid ? y * (1.0f - y) : silu_slope(gate);
}

}  // namespace

void rms_norm_forward(const RMSNorm& x) {
  const long block = block_rows(x), blocks = (x.rows + block - 1) / block, ld = padded(x.D);
  const long weights = x.per_head ? x.heads : 1;
  float* memory = scratch_memory((x.threads + weights) * ld);
  const float* all_weights = lay_weight(x, memory + x.threads * ld, ld);
  parallel(blocks, x.threads, [&](long index) {
    float* s = memory + thread_index() * ld;
    for (long r = index * block; r < least(x.rows, (index + 1) * block); r++) {
      const void *in = row_of(x.x, x.x_dtype, x, r, x.x_row), *before = row_of(x.before, x.before_dtype, x, r, x.before_row);
      const void *gate = row_of(x.gate, x.gate_dtype, x, r, x.gate_row), *after = row_of(x.after, x.after_dtype, x, r, x.after_row);
      void *sum_row = element(x.sum, x.x_dtype, r * x.D), *out = element(x.out, x.out_dtype, r * x.D);
      const float* weight = all_weights + (x.per_head ? r % x.heads * ld : 0);
      vec squares = {};
      along_row(x.D, [&](long d, auto part) {
        vec y = load_part(in, x.x_dtype, d, x.D, part);
        if (before) y += load_part(before, x.before_dtype, d, x.D, part);
        if (sum_row) store_part(sum_row, x.x_dtype, y, d, x.D, part);
        if (gate && x.gate_first) y *= opened(x, load_part(gate, x.gate_dtype, d, x.D, part));
        store(s + d, y);
        squares += y * y;
      });
      const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / x.D + x.eps);
      if (x.inverse) x.inverse[r] = inverse;
      along_row(x.D, [&](long d, auto part) {
        vec y = load(weight + d) * (inverse * load(s + d));
        if (gate && !x.gate_first) y *= opened(x, load_part(gate, x.gate_dtype, d, x.D, part));
        if (after) y += load_part(after, x.after_dtype, d, x.D, part);
        store_part(out, x.out_dtype, y, d, x.D, part);
      });
    }
  });
}

// With n = s / rms and u = d_out act(gate): d_s = (weight u - n mean(weight u n)) / rms; d_weight = sum of u n. Where the
// gate comes first, s = x act(gate) and u = d_out.
void rms_norm_backward(const RMSNorm& x) {
  const long block = block_rows(x), blocks = (x.rows + block - 1) / block, ld = padded(x.D);
  const long weights = x.per_head ? x.heads : 1, all = weights * ld;
  if (blocks == 0) {
    memset(x.d_weight, 0, weights * x.D * sizeof(float));
    return;
  }
  float* memory = scratch_memory(2 * x.threads * ld + (1 + blocks) * all);
  float* parts = memory + 2 * x.threads * ld;
  const float* all_weights = lay_weight(x, parts + blocks * all, ld);
  parallel(blocks, x.threads, [&](long index) {
    float *n = memory + thread_index() * 2 * ld, *u = n + ld;
    memset(parts + index * all, 0, all * sizeof(float));
    for (long r = index * block; r < least(x.rows, (index + 1) * block); r++) {
      const void *in = row_of(x.x, x.x_dtype, x, r, x.x_row), *gate = row_of(x.gate, x.gate_dtype, x, r, x.gate_row);
      const void *d_out = element(x.d_out, x.out_dtype, r * x.D), *d_sum = element(x.d_sum, x.x_dtype, r * x.D);
      void *d_x = element(x.d_x, x.x_dtype, r * x.D), *d_before = element(x.d_before, x.before_dtype, r * x.D);
      void* d_gate = element(x.d_gate, x.gate_dtype, r * x.D);
      const long head = x.per_head ? r % x.heads * ld : 0;
      const float *weight = all_weights + head, inverse = x.inverse[r];
      float* d_weight = parts + index * all + head;
      vec along = {};
      along_row(x.D, [&](long d, auto part) {
        vec dy = load_part(d_out, x.out_dtype, d, x.D, part), y = inverse * load_part(in, x.x_dtype, d, x.D, part);
        if (gate && x.gate_first) y *= opened(x, load_part(gate, x.gate_dtype, d, x.D, part));
        if (gate && !x.gate_first) {
          vec g = load_part(gate, x.gate_dtype, d, x.D, part);
          store_part(d_gate, x.gate_dtype, dy * load(weight + d) * y * slope(x, g), d, x.D, part);
          dy *= opened(x, g);
        }
        store(d_weight + d, load(d_weight + d) + dy * y);
        vec scaled = dy * load(weight + d);
        store(n + d, y), store(u + d, scaled);
        along += scaled * y;
      });
      const float mean = sum(along) / x.D;
      along_row(x.D, [&](long d, auto part) {
        vec ds = inverse * (load(u + d) - mean * load(n + d));
        if (gate && x.gate_first) {
          vec g = load_part(gate, x.gate_dtype, d, x.D, part);
          store_part(d_gate, x.gate_dtype, ds * load_part(in, x.x_dtype, d, x.D, part) * slope(x, g), d, x.D, part);
          ds *= opened(x, g);
        }
        if (d_sum) ds += load_part(d_sum, x.x_dtype, d, x.D, part);
        store_part(d_x, x.x_dtype, ds, d, x.D, part);
        if (d_before) store_part(d_before, x.before_dtype, ds, d, x.D, part);
      });
    }
  });
  for (long b = 1; b < blocks; b++)  // in their order, whoever made them
    for (long d = 0; d < all; d += VW) store(parts + d, load(parts + d) + load(parts + b * all + d));
  for (long h = 0; h < weights; h++) memcpy(x.d_weight + h * x.D, parts + h * ld, x.D * sizeof(float));
}

}  // namespace INTERLACE_ISA
