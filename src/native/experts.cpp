// The experts of a few rows: every weight of a chosen expert is read once for each row that chose it, as in linear.cpp.
namespace INTERLACE_ISA {
namespace {

// `count` outputs of one row of x from the rows of w.
template <class T>
void some_outputs(const T* w, long D, const T* x, float* y, long count) {
  long o = 0;
  for (; o + OUTPUTS <= count; o += OUTPUTS) outputs<T, OUTPUTS, 1>(w + o * D, D, x, y + o);
  for (; o < count; o++) outputs<T, 1, 1>(w + o * D, D, x, y + o);
}

template <class T>
void experts_of(const Experts& x) {
  const bool quantised = x.first == nullptr;
  const long pairs = x.rows * x.k, ld = (x.A + LANES - 1) / LANES * LANES, inner = padded(x.I);
  const long group = quantised ? x.quantised_first.group : 1;
  const size_t own = pairs * (ld + inner), of_rows = quantised ? Steps::floats(x.rows, x.D, group) : 0;
  float* hidden = scratch_memory(own + of_rows + (quantised ? Steps::floats(pairs, x.I, group) : 0));
  const Steps in(hidden + own, x.rows, x.D, group), between(hidden + own + of_rows, pairs, x.I, group);
  T* opened = reinterpret_cast<T*>(hidden + pairs * ld);
  const T *rows = static_cast<const T*>(x.x), *first = static_cast<const T*>(x.first), *second = static_cast<const T*>(x.second);
  // Outputs [o, o + count) of expert e, whose matrix w is [outputs, D], for one row.
  auto part = [&](const T* w, const QuantisedWeight& few, const Steps& steps, long e, long outputs, long D, long o, const T* row,
                  long number, float* y, long count) {
    if (!quantised) return some_outputs(w + (e * outputs + o) * D, D, row, y, count);
    const long block = e * ((outputs + LANES - 1) / LANES) + o / LANES;
    for (long d = 0; d < count; d += LANES) rows_of_outputs(few, block + d / LANES, steps, number, 1, y + d, LANES);
  };
  for (long r = 0; r < (quantised ? x.rows : 0); r++) in.write(r, rows + r * x.D, x.D);
  const long stretches = (x.A + STRETCH - 1) / STRETCH;
  parallel(pairs * stretches, x.threads, [&](long index) {
    const long p = index / stretches, o = index % stretches * STRETCH, r = p / x.k;
    part(first, x.quantised_first, in, x.chosen[p], x.A, x.D, o, rows + r * x.D, r, hidden + p * ld + o, least(STRETCH, x.A - o));
  });
  for (long p = 0; p < pairs; p++) {
    const float *h = hidden + p * ld, *up = h + x.I;
    along_row(x.I, [&](long d, auto vector) {
      vec g = load_part(h, d, x.I, vector), y = larger(g, vec{});
      store_part(opened + p * inner, x.gated ? silu(g) * load_part(up, d, x.I, vector) : y * y, d, x.I, vector);
    });
    if (quantised) between.write(p, opened + p * inner, x.I);
  }
  const long parts = (x.outputs + STRETCH - 1) / STRETCH;
  parallel(x.rows * parts, x.threads, [&](long index) {
    const long r = index / parts, o = index % parts * STRETCH, count = least(STRETCH, x.outputs - o);
    float total[STRETCH] = {}, y[STRETCH] = {};
    for (long p = r * x.k; p < (r + 1) * x.k; p++) {
      part(second, x.quantised_second, between, x.chosen[p], x.outputs, x.I, o, opened + p * inner, p, y, count);
      for (long d = 0; d < STRETCH; d += VW) store(total + d, load(total + d) + x.weights[p] * load(y + d));
    }
    along_row(count, [&](long d, auto vector) {
      store_part(static_cast<T*>(x.out) + r * x.outputs + o, load(total + d), d, count, vector);
    });
  });
}

}  // namespace

void experts(const Experts& x) { x.dtype == DType::bf16 ? experts_of<bf16>(x) : experts_of<float>(x); }

}  // namespace INTERLACE_ISA
