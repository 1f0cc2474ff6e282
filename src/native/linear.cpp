// y = W x for a few rows: every weight is read once, so memory sets the pace.
namespace INTERLACE_ISA {
namespace {

constexpr long OUTPUTS = 4;       // rows of W read side by side
constexpr int TOGETHER = 3;       // rows of x that share a load of W
constexpr int BESIDE = sizeof(vec) == 64 ? 4 : 2;  // rows of W whose sums with these fit the registers
constexpr long STRETCH = 64;      // outputs of an item of work
constexpr long AHEAD = 2048;      // elements

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

// N outputs of R rows of x, y[r * STRETCH + n]; two sums each, so that a product need not wait for the one before it. The
// order of a sum is the same for any N and R.
template <class T, int N, int R, bool FETCH = true>
inline void outputs(const T* w, long D, const T* x, long, float* y) {
  constexpr long step = step_of<T>;
  vec even[N][R] = {}, odd[N][R] = {};
  long d = 0;
  for (; d + 2 * step <= D; d += 2 * step) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      if constexpr (FETCH) {
        __builtin_prefetch(w + n * D + d + AHEAD, 0, 3);
        __builtin_prefetch(w + n * D + d + AHEAD + step, 0, 3);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        even[n][r] = add_products(even[n][r], w + n * D + d, x + r * D + d);
        odd[n][r] = add_products(odd[n][r], w + n * D + d + step, x + r * D + d + step);
      }
    }
  }
  for (; d < D; d += VW)
    for (int n = 0; n < N; n++)
      for (int r = 0; r < R; r++) even[n][r] += load_up_to(w + n * D + d, D - d) * load_up_to(x + r * D + d, D - d);
  for (int n = 0; n < N; n++)
    for (int r = 0; r < R; r++) y[r * STRETCH + n] = sum(even[n][r] + odd[n][r]);
}

// int8 weights: rows of x as floats, `ld` apart, one product of 16 (8, 4) at a time, scaled at the end.
template <class, int N, int R, bool FETCH = true>
inline void outputs(const int8_t* w, long D, const float* x, long ld, float* y) {
  vec even[N][R] = {}, odd[N][R] = {};
  long d = 0;
  for (; d + 2 * VW <= D; d += 2 * VW) {
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      if (FETCH && d % 64 == 0) __builtin_prefetch(w + n * D + d + AHEAD, 0, 3);
      const vec first = load(w + n * D + d), second = load(w + n * D + d + VW);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        even[n][r] += first * load(x + r * ld + d);
        odd[n][r] += second * load(x + r * ld + d + VW);
      }
    }
  }
  for (int n = 0; n < N; n++)
    for (int r = 0; r < R; r++) {
      float total = sum(even[n][r] + odd[n][r]);
      for (long e = d; e < D; e++) total += w[n * D + e] * x[r * ld + e];
      y[r * STRETCH + n] = total;
    }
}

// Each output of each row is one sum in one order, however many rows there are: a batched row equals its solo run. A few
// outputs' weights are read by every row while they are near.
template <class T>
void linear_rows(const Linear& x) {
  if (x.rows == 0) return;
  const long ld = padded(x.D);
  float* memory = scratch_memory((x.scales ? x.rows * ld : 0) + size_t(x.threads) * x.rows * STRETCH);
  float* wide = memory + size_t(x.threads) * x.rows * STRETCH;
  for (long r = 0; r < (x.scales ? x.rows : 0); r++) widen(wide + r * ld, static_cast<const T*>(x.x) + r * x.D, x.D);
  parallel((x.outputs + STRETCH - 1) / STRETCH, x.threads, [&](long index) {
    const long first = index * STRETCH, count = least(STRETCH, x.outputs - first);
    const T* w = static_cast<const T*>(x.weight) + first * x.D;
    const int8_t* w8 = static_cast<const int8_t*>(x.weight) + first * x.D;
    float* y = memory + thread_index() * x.rows * STRETCH;
    auto some = [&](long o, long r, auto beside, auto together, auto fetch) {
      constexpr int N = decltype(beside)::value, R = decltype(together)::value;
      constexpr bool FETCH = decltype(fetch)::value;
      float* to = y + r * STRETCH + o;
      if (x.scales) outputs<T, N, R, FETCH>(w8 + o * x.D, x.D, wide + r * ld, ld, to);
      else outputs<T, N, R, FETCH>(w + o * x.D, x.D, static_cast<const T*>(x.x) + r * x.D, x.D, to);
    };
    long o = 0;
    for (; o + OUTPUTS <= count; o += OUTPUTS) {
      some(o, 0, Int<OUTPUTS>{}, Int<1>{}, Int<1>{});  // the first row fetches the weights of the next outputs
      long r = 1;
      for (; r + TOGETHER <= x.rows; r += TOGETHER)
        for (long n = 0; n < OUTPUTS; n += BESIDE) some(o + n, r, Int<BESIDE>{}, Int<TOGETHER>{}, Int<0>{});
      for (; r < x.rows; r++) some(o, r, Int<OUTPUTS>{}, Int<1>{}, Int<0>{});
    }
    for (; o < count; o++)
      for (long r = 0; r < x.rows; r++) some(o, r, Int<1>{}, Int<1>{}, Int<0>{});
    for (long r = 0; r < x.rows; r++) {
      const T* residual = x.residual ? static_cast<const T*>(x.residual) + r * x.outputs + first : nullptr;
      along_row(count, [&](long d, auto part) {
        vec z = load_part(y + r * STRETCH, d, count, part);
        if (x.scales) z *= load_part(x.scales + first, d, count, part);
        if (residual) z += load_part(residual, d, count, part);
        store_part(static_cast<T*>(x.out) + r * x.outputs + first, z, d, count, part);
      });
    }
  });
}

}  // namespace

void linear(const Linear& x) { x.dtype == DType::bf16 ? linear_rows<bf16>(x) : linear_rows<float>(x); }

}  // namespace INTERLACE_ISA
