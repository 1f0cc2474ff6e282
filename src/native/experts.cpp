// The experts of a few rows: every weight of a chosen expert is read once for each row that chose it, as in linear.cpp.
namespace INTERLACE_ISA {
namespace {

// `count` outputs of one row of x from the rows of w.
template <class T>
void some_outputs(const T* w, long D, const T* x, float* y, long count) {
  long o = 0;
  for (; o + OUTPUTS <= count; o += OUTPUTS) outputs<T, OUTPUTS, 1>(w + o * D, D, x, D, y + o);
  for (; o < count; o++) outputs<T, 1, 1>(w + o * D, D, x, D, y + o);
}

template <class T>
void experts_of(const Experts& x) {
  const long pairs = x.rows * x.k, ld = padded(x.A), inner = padded(x.I);
  float* hidden = scratch_memory(pairs * (ld + inner));
  T* opened = reinterpret_cast<T*>(hidden + pairs * ld);
  const T *rows = static_cast<const T*>(x.x), *first = static_cast<const T*>(x.first), *second = static_cast<const T*>(x.second);
  const long stretches = (x.A + STRETCH - 1) / STRETCH;
  parallel(pairs * stretches, x.threads, [&](long index) {
    const long p = index / stretches, o = index % stretches * STRETCH;
    some_outputs(first + (x.chosen[p] * x.A + o) * x.D, x.D, rows + p / x.k * x.D, hidden + p * ld + o, least(STRETCH, x.A - o));
  });
  for (long p = 0; p < pairs; p++) {
    const float *h = hidden + p * ld, *up = h + x.I;
    along_row(x.I, [&](long d, auto part) {
      vec g = load_part(h, d, x.I, part), y = larger(g, vec{});
      store_part(opened + p * inner, x.gated ? silu(g) * load_part(up, d, x.I, part) : y * y, d, x.I, part);
    });
  }
  const long parts = (x.outputs + STRETCH - 1) / STRETCH;
  parallel(x.rows * parts, x.threads, [&](long index) {
    const long r = index / parts, o = index % parts * STRETCH, count = least(STRETCH, x.outputs - o);
    float total[STRETCH] = {}, y[STRETCH] = {};
    for (long p = r * x.k; p < (r + 1) * x.k; p++) {
      some_outputs(second + (x.chosen[p] * x.outputs + o) * x.I, x.I, opened + p * inner, y, count);
      for (long d = 0; d < STRETCH; d += VW) store(total + d, load(total + d) + x.weights[p] * load(y + d));
    }
    along_row(count, [&](long d, auto part) {
      store_part(static_cast<T*>(x.out) + r * x.outputs + o, load(total + d), d, count, part);
    });
  });
}

}  // namespace

void experts(const Experts& x) { x.dtype == DType::bf16 ? experts_of<bf16>(x) : experts_of<float>(x); }

}  // namespace INTERLACE_ISA
