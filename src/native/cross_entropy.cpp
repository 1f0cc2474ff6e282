// Next-token cross-entropy of a block of logits, whose gradient takes their place: three passes over a row in cache.
namespace INTERLACE_ISA {
namespace {

template <class T>
void cross_entropy_rows(const CrossEntropy& x) {
  parallel(x.rows, x.threads, [&](long r) {
    T* row = static_cast<T*>(x.logits) + r * x.D;
    const long target = x.targets[r];
    if (target == x.ignored) {
      memset(row, 0, x.D * sizeof(T));
      x.losses[r] = 0;
      return;
    }
    const vec lowest = splat(-__builtin_inff());
    vec peaks = lowest, wrong = {};
    const long whole = x.D / VW * VW;
    for (long d = 0; d < whole; d += VW) {
      vec y = load(row + d);
      peaks = larger(peaks, y);
      wrong += select(y != y, y, vec{});  // a NaN is not larger than anything
    }
    float peak = peaks[0];
    for (int i = 1; i < VW; i++) peak = peaks[i] > peak ? peaks[i] : peak;
    float tail[VW];
    const long left = x.D - whole;
    store(tail, load_first(row + whole, left));
    for (long i = 0; i < left; i++) peak = tail[i] > peak ? tail[i] : peak;
    vec total = {};
    for (long d = 0; d < whole; d += VW) total += exponential(load(row + d) - peak);
    for (long i = left; i < VW; i++) tail[i] = -__builtin_inff();
    total += exponential(load(tail) - peak);
    const float size = sum(total + wrong);
    x.losses[r] = __builtin_logf(size) + peak - value(row + target);
    const float factor = x.factor / size;
    along_row(x.D, [&](long d, auto part) {
      vec p = factor * exponential(load_part(row, d, x.D, part) - peak);
      if (target >= d && target < d + VW) p[target - d] -= x.factor;
      store_part(row, p, d, x.D, part);
    });
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& x) {
  x.dtype == DType::bf16 ? cross_entropy_rows<bf16>(x) : cross_entropy_rows<float>(x);
}

}  // namespace INTERLACE_ISA
