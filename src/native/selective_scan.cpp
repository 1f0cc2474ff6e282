// Mamba's selective scan, forward: h <- exp(step A) h + step x B, out = h C. An item of work is one segment and one
// vector of channels, whose states stay in the first cache; a single token for each segment is the decode step.
namespace INTERLACE_ISA {
namespace {

template <class T>
void selective_scan_of(const SelectiveScan& x) {
  const long vectors = (x.D + VW - 1) / VW, size = x.K * VW;
  float* memory = scratch_memory(size_t(x.threads) * 2 * size);
  parallel(x.N * vectors, x.threads, [&](long index) {
    const long n = index / vectors, d = index % vectors * VW, left = least(VW, x.D - d);
    float *h = memory + thread_index() * 2 * size, *A = h + size;  // [K, VW]
    memset(h, 0, 2 * size * sizeof(float));
    for (long i = 0; i < left; i++)
      for (long p = 0; p < x.K; p++) {
        A[p * VW + i] = x.A[(d + i) * x.K + p];
        if (x.state) h[p * VW + i] = x.state[(n * x.D + d + i) * x.K + p];
      }
    for (long t = x.offsets ? x.offsets[n] : n; t < (x.offsets ? x.offsets[n + 1] : n + 1); t++) {
      const T *B = static_cast<const T*>(x.B) + t * x.b_row, *C = static_cast<const T*>(x.C) + t * x.c_row;
      const vec step = load_up_to(x.step + t * x.D + d, left);
      const vec write = step * load_up_to(static_cast<const T*>(x.x) + t * x.x_row + d, left);
      vec answer = {};
      for (long p = 0; p < x.K; p++) {
        const vec s = exponential(step * load(A + p * VW)) * load(h + p * VW) + value(B + p) * write;
        store(h + p * VW, s);
        answer += value(C + p) * s;
      }
      store_up_to(static_cast<T*>(x.out) + t * x.D + d, answer, left);
    }
    for (long i = 0; i < left; i++)
      for (long p = 0; p < x.K; p++) x.final_state[(n * x.D + d + i) * x.K + p] = h[p * VW + i];
  });
}

}  // namespace

void selective_scan(const SelectiveScan& x) {
  x.dtype == DType::bf16 ? selective_scan_of<bf16>(x) : selective_scan_of<float>(x);
}

}  // namespace INTERLACE_ISA
