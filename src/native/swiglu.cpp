// SiLU(gate) up, and its gradients.
namespace INTERLACE_ISA {
namespace {

constexpr long SWIGLU_BLOCK = 16384;  // elements

template <class T, bool BACK>
void swiglu(const SwiGLU& x) {
  const long block = most(1, SWIGLU_BLOCK / x.D);
  parallel((x.rows + block - 1) / block, x.threads, [&](long index) {
    for (long r = index * block; r < least(x.rows, (index + 1) * block); r++) {
      const T *gate = static_cast<const T*>(x.gate) + r * x.row, *up = static_cast<const T*>(x.up) + r * x.row;
      along_row(x.D, [&](long d, auto part) {
        vec g = load_part(gate, d, x.D, part), u = load_part(up, d, x.D, part), s = sigmoid(g);
        if constexpr (BACK) {
          vec dy = load_part(static_cast<const T*>(x.d_out) + r * x.D, d, x.D, part);
          store_part(static_cast<T*>(x.d_gate) + r * x.row, dy * u * (s + s * (1.0f - s) * g), d, x.D, part);
          store_part(static_cast<T*>(x.d_up) + r * x.row, dy * g * s, d, x.D, part);
        } else {
          store_part(static_cast<T*>(x.out) + r * x.D, g * s * u, d, x.D, part);
        }
      });
    }
  });
}

}  // namespace

void swiglu_forward(const SwiGLU& x) { x.dtype == DType::bf16 ? swiglu<bf16, false>(x) : swiglu<float, false>(x); }
void swiglu_backward(const SwiGLU& x) { x.dtype == DType::bf16 ? swiglu<bf16, true>(x) : swiglu<float, true>(x); }

}  // namespace INTERLACE_ISA
