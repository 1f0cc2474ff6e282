// Pairs of a head's elements times rotations, and with `sign` -1 times their transposes, which is the gradient.
namespace INTERLACE_ISA {
namespace {

constexpr long ROPE_BLOCK = 16384;  // elements

template <class T>
void rope(const Rope& x) {
  const long block = most(1, ROPE_BLOCK / (x.heads * x.dim)), half = x.turning / 2;
  parallel((x.total + block - 1) / block, x.threads, [&](long index) {
    for (long t = index * block; t < least(x.total, (index + 1) * block); t++) {
      const float *cos = x.cos + t * x.turning, *sin = x.sin + t * x.turning;
      for (long h = 0; h < x.heads; h++) {
        const T* from = static_cast<const T*>(x.x) + t * x.row + h * x.dim;
        T* to = static_cast<T*>(x.out) + (t * x.heads + h) * x.dim;
        along_row(half, [&](long d, auto part) {
          vec low = load_part(from, d, half, part), high = load_part(from + half, d, half, part);
          vec c = load_part(cos, d, half, part), s = x.sign * load_part(sin, d, half, part);
          store_part(to, low * c - high * s, d, half, part);
          store_part(to + half, high * c + low * s, d, half, part);
        });
        memcpy(to + x.turning, from + x.turning, (x.dim - x.turning) * sizeof(T));
      }
    }
  });
}

}  // namespace

void rope(const Rope& x) { x.dtype == DType::bf16 ? rope<bf16>(x) : rope<float>(x); }

}  // namespace INTERLACE_ISA
