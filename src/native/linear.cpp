// y = W x for a few rows: every weight is read once, so memory sets the pace.
namespace INTERLACE_ISA {
namespace {

constexpr long OUTPUTS = 4;       // rows of W read side by side
constexpr int TOGETHER = 3;       // rows of x that share a load of W
constexpr int BESIDE = sizeof(vec) == 64 ? 4 : 2;  // rows of W whose sums with these fit the registers
constexpr long STRETCH = 64;      // outputs of an item of work
constexpr long AHEAD = 8192;      // bytes; these rows lie end to end, and what follows is fetched in that order
constexpr long TOGETHER_AT_MOST = 64;  // rows that read the weights side by side

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
inline void outputs(const T* w, long D, const T* x, float* y) {
  constexpr long step = step_of<T>, bytes = N * 2 * step * sizeof(T), lines = bytes < 64 ? 1 : bytes / 64;
  vec even[N][R] = {}, odd[N][R] = {};
  long d = 0;
  for (; d + 2 * step <= D; d += 2 * step) {
    if constexpr (FETCH) {
#pragma GCC unroll 8
      for (int i = 0; i < lines; i++) __builtin_prefetch(reinterpret_cast<const char*>(w + N * d) + 64 * i + AHEAD, 0, 3);
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
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

// `count` outputs of all rows. A few outputs' weights are read by every row while they are near.
template <class T>
inline void stretch_of_outputs(const T* w, long D, const T* x, long rows, float* y, long count) {
  auto some = [&](long o, long r, auto beside, auto together, auto fetch) {
    constexpr int N = decltype(beside)::value, R = decltype(together)::value;
    outputs<T, N, R, bool(decltype(fetch)::value)>(w + o * D, D, x + r * D, y + r * STRETCH + o);
  };
  long o = 0;
  for (; o + OUTPUTS <= count; o += OUTPUTS) {
    some(o, 0, Int<OUTPUTS>{}, Int<1>{}, Int<1>{});  // the first row fetches the weights of the next outputs
    long r = 1;
    for (; r + TOGETHER <= rows; r += TOGETHER)
      for (long n = 0; n < OUTPUTS; n += BESIDE) some(o + n, r, Int<BESIDE>{}, Int<TOGETHER>{}, Int<0>{});
    for (; r < rows; r++) some(o, r, Int<OUTPUTS>{}, Int<1>{}, Int<0>{});
  }
  for (; o < count; o++)
    for (long r = 0; r < rows; r++) some(o, r, Int<1>{}, Int<1>{}, Int<0>{});
}

// Each output of each row is one sum in one order, however many rows there are: a batched row equals its solo run.
template <class T>
void linear_rows(const Linear& x) {
  const bool quantised = x.weight == nullptr;
  for (long start = 0; start < x.rows; start += TOGETHER_AT_MOST) {
    const long rows = least(TOGETHER_AT_MOST, x.rows - start);
    const T* in = static_cast<const T*>(x.x) + start * x.D;
    const size_t sums = size_t(x.threads) * rows * STRETCH;
    float* memory = scratch_memory(sums + (quantised ? Steps::floats(rows, x.D, x.quantised.group) : 0));
    const Steps steps(memory + sums, rows, x.D, quantised ? x.quantised.group : 1);
    if (quantised) parallel(rows, rows < 8 ? 1 : x.threads, [&](long r) { steps.write(r, in + r * x.D, x.D); });
    parallel((x.outputs + STRETCH - 1) / STRETCH, x.threads, [&](long index) {
      const long first = index * STRETCH, count = least(STRETCH, x.outputs - first);
      float* y = memory + thread_index() * rows * STRETCH;
      if (quantised) {
        for (long o = 0; o < count; o += LANES) rows_of_outputs(x.quantised, (first + o) / LANES, steps, 0, rows, y + o, STRETCH);
      } else {
        stretch_of_outputs(static_cast<const T*>(x.weight) + first * x.D, x.D, in, rows, y, count);
      }
      for (long r = 0; r < rows; r++) {
        const T* residual = x.residual ? static_cast<const T*>(x.residual) + (start + r) * x.outputs + first : nullptr;
        along_row(count, [&](long d, auto part) {
          vec z = load_part(y + r * STRETCH, d, count, part);
          if (residual) z += load_part(residual, d, count, part);
          store_part(static_cast<T*>(x.out) + (start + r) * x.outputs + first, z, d, count, part);
        });
      }
    });
  }
}

}  // namespace

void linear(const Linear& x) { x.dtype == DType::bf16 ? linear_rows<bf16>(x) : linear_rows<float>(x); }

}  // namespace INTERLACE_ISA
