// y = W x for a few rows: every weight is read once, so memory sets the pace.
namespace INTERLACE_ISA {
namespace {

constexpr long OUTPUTS = 4;       // rows of W read side by side
constexpr long STRETCH = 64;      // outputs of an item of work

#ifdef __AVX512BF16__
constexpr long STEP = 2 * VW;     // elements of one load: pairs of bfloat16 are multiplied and summed at once
inline vec add_products(vec total, const bf16* w, const bf16* x) {
  return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_loadu_si512(x));
}
#else
constexpr long STEP = VW;
inline vec add_products(vec total, const bf16* w, const bf16* x) { return total + load(w) * load(x); }
#endif
template <class T>
constexpr long step_of = sizeof(T) == 2 ? STEP : VW;
inline vec add_products(vec total, const float* w, const float* x) { return total + load(w) * load(x); }

// N outputs of one row of x; two sums each, so that a product need not wait for the one before it.
template <class T, int N>
inline void outputs(const T* w, long D, const T* x, float* y) {
  constexpr long step = step_of<T>;
  vec even[N] = {}, odd[N] = {};
  long d = 0;
  for (; d + 2 * step <= D; d += 2 * step) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      even[n] = add_products(even[n], w + n * D + d, x + d);
      odd[n] = add_products(odd[n], w + n * D + d + step, x + d + step);
    }
  }
  for (; d < D; d += VW)
    for (int n = 0; n < N; n++) even[n] += load_up_to(w + n * D + d, D - d) * load_up_to(x + d, D - d);
  for (int n = 0; n < N; n++) y[n] = sum(even[n] + odd[n]);
}

template <class T>
void linear_rows(const Linear& x) {
  parallel((x.outputs + STRETCH - 1) / STRETCH, x.threads, [&](long index) {
    const long first = index * STRETCH, count = least(STRETCH, x.outputs - first);
    const T* w = static_cast<const T*>(x.weight) + first * x.D;
    float y[STRETCH] = {};
    for (long r = 0; r < x.rows; r++) {
      const T* row = static_cast<const T*>(x.x) + r * x.D;
      long o = 0;
      for (; o + OUTPUTS <= count; o += OUTPUTS) outputs<T, OUTPUTS>(w + o * x.D, x.D, row, y + o);
      for (; o < count; o++) outputs<T, 1>(w + o * x.D, x.D, row, y + o);
      const T* residual = x.residual ? static_cast<const T*>(x.residual) + r * x.outputs + first : nullptr;
      along_row(count, [&](long d, auto part) {
        vec z = load(y + d);
        if (residual) z += load_part(residual, d, count, part);
        store_part(static_cast<T*>(x.out) + r * x.outputs + first, z, d, count, part);
      });
    }
  });
}

}  // namespace

void linear(const Linear& x) { x.dtype == DType::bf16 ? linear_rows<bf16>(x) : linear_rows<float>(x); }

}  // namespace INTERLACE_ISA
