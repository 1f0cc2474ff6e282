// Root-mean-square norm of rows, with what usually stands around it: a sum before, a gate and a sum after.
namespace INTERLACE_ISA {
namespace {

constexpr long BLOCK_ELEMENTS = 16384;

inline long block_rows(const RMSNorm& x) { return most(1, BLOCK_ELEMENTS / x.D); }

// One row of an operand; rows of one token's heads lie side by side, tokens `stride` apart.
inline const void* row_of(const void* p, DType dtype, const RMSNorm& x, long r, long stride) {
  return element(p, dtype, r / x.heads * stride + r % x.heads * x.D);
}

}  // namespace

void rms_norm_forward(const RMSNorm& x) {
  const long block = block_rows(x), blocks = (x.rows + block - 1) / block, ld = padded(x.D);
  float* memory = scratch_memory((x.threads + 1) * ld);
  float* weight = memory + x.threads * ld;
  along_row(x.D, [&](long d, auto part) { store(weight + d, load_part(x.weight, x.weight_dtype, d, x.D, part)); });
  parallel(blocks, x.threads, [&](long index) {
    float* s = memory + thread_index() * ld;
    for (long r = index * block; r < least(x.rows, (index + 1) * block); r++) {
      const void *in = row_of(x.x, x.x_dtype, x, r, x.x_row), *before = row_of(x.before, x.before_dtype, x, r, x.before_row);
      const void *gate = row_of(x.gate, x.gate_dtype, x, r, x.gate_row), *after = row_of(x.after, x.after_dtype, x, r, x.after_row);
      void *sum_row = element(x.sum, x.x_dtype, r * x.D), *out = element(x.out, x.out_dtype, r * x.D);
      vec squares = {};
      along_row(x.D, [&](long d, auto part) {
        vec y = load_part(in, x.x_dtype, d, x.D, part);
        if (before) y += load_part(before, x.before_dtype, d, x.D, part);
        if (sum_row) store_part(sum_row, x.x_dtype, y, d, x.D, part);
        store(s + d, y);
        squares += y * y;
      });
      const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / x.D + x.eps);
      if (x.inverse) x.inverse[r] = inverse;
      along_row(x.D, [&](long d, auto part) {
        vec y = load(weight + d) * (inverse * load(s + d));
        if (gate) y *= silu(load_part(gate, x.gate_dtype, d, x.D, part));
        if (after) y += load_part(after, x.after_dtype, d, x.D, part);
        store_part(out, x.out_dtype, y, d, x.D, part);
      });
    }
  });
}

// With n = s / rms and u = d_out SiLU(gate): d_s = (weight u - n mean(weight u n)) / rms; d_weight = sum of u n.
void rms_norm_backward(const RMSNorm& x) {
  const long block = block_rows(x), blocks = (x.rows + block - 1) / block, ld = padded(x.D);
  float* memory = scratch_memory((2 * x.threads + 1 + blocks) * ld);
  float *weight = memory + 2 * x.threads * ld, *parts = weight + ld;
  if (blocks == 0) {
    memset(x.d_weight, 0, x.D * sizeof(float));
    return;
  }
  along_row(x.D, [&](long d, auto part) { store(weight + d, load_part(x.weight, x.weight_dtype, d, x.D, part)); });
  parallel(blocks, x.threads, [&](long index) {
    float *n = memory + thread_index() * 2 * ld, *u = n + ld, *d_weight = parts + index * ld;
    memset(d_weight, 0, ld * sizeof(float));
    for (long r = index * block; r < least(x.rows, (index + 1) * block); r++) {
      const void *in = row_of(x.x, x.x_dtype, x, r, x.x_row), *gate = row_of(x.gate, x.gate_dtype, x, r, x.gate_row);
      const void *d_out = element(x.d_out, x.out_dtype, r * x.D), *d_sum = element(x.d_sum, x.x_dtype, r * x.D);
      void *d_x = element(x.d_x, x.x_dtype, r * x.D), *d_before = element(x.d_before, x.before_dtype, r * x.D);
      void* d_gate = element(x.d_gate, x.gate_dtype, r * x.D);
      const float inverse = x.inverse[r];
      vec along = {};
      along_row(x.D, [&](long d, auto part) {
        vec dy = load_part(d_out, x.out_dtype, d, x.D, part), y = inverse * load_part(in, x.x_dtype, d, x.D, part);
        if (gate) {
          vec g = load_part(gate, x.gate_dtype, d, x.D, part);
          store_part(d_gate, x.gate_dtype, dy * load(weight + d) * y * silu_slope(g), d, x.D, part);
          dy *= silu(g);
        }
        store(d_weight + d, load(d_weight + d) + dy * y);
        vec scaled = dy * load(weight + d);
        store(n + d, y), store(u + d, scaled);
        along += scaled * y;
      });
      const float mean = sum(along) / x.D;
      along_row(x.D, [&](long d, auto part) {
        vec ds = inverse * (load(u + d) - mean * load(n + d));
        if (d_sum) ds += load_part(d_sum, x.x_dtype, d, x.D, part);
        store_part(d_x, x.x_dtype, ds, d, x.D, part);
        if (d_before) store_part(d_before, x.before_dtype, ds, d, x.D, part);
      });
    }
  });
  for (long b = 1; b < blocks; b++)  // in their order, whoever made them
    for (long d = 0; d < ld; d += VW) store(parts + d, load(parts + d) + load(parts + b * ld + d));
  memcpy(x.d_weight, parts, x.D * sizeof(float));
}

}  // namespace INTERLACE_ISA
