// Attention of one token over the keys and values that its sequence keeps.
namespace INTERLACE_ISA {
namespace {

template <class T>
void attention_step_of(const AttentionStep& x) {
  const long group = x.H / x.J, ldk = padded(x.K), ldv = padded(x.V), visible = x.window ? x.window : x.capacity;
  const long floats = group * (ldk + padded(visible) + ldv) + LINE;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  parallel(x.N * x.J, x.threads, [&](long index) {
    const long n = index / x.J, j = index % x.J, seen = x.positions[n];
    const long slot = x.window ? seen % x.window : seen, held = least(seen + 1, visible);
    const long key_row = x.J * x.K, value_row = x.J * x.V;
    T* keys = static_cast<T*>(x.keys) + (n * x.capacity * x.J + j) * x.K;
    T* values = static_cast<T*>(x.values) + (n * x.capacity * x.J + j) * x.V;
    memcpy(keys + slot * key_row, static_cast<const T*>(x.key) + n * x.k_row + j * x.K, x.K * sizeof(T));
    memcpy(values + slot * value_row, static_cast<const T*>(x.value) + n * x.v_row + j * x.V, x.V * sizeof(T));
    float *q = memory + thread_index() * floats, *scores = q + group * ldk, *out = scores + group * padded(visible);
    for (long g = 0; g < group; g++) {
      widen(q + g * ldk, static_cast<const T*>(x.query) + n * x.q_row + (j * group + g) * x.K, x.K);
      for (long d = 0; d < ldk; d += VW) store(q + g * ldk + d, x.scale * load(q + g * ldk + d));
    }
    memset(out, 0, group * ldv * sizeof(float));
    for (long t = 0; t < held; t++)
      for (long g = 0; g < group; g++) {
        vec total = {};
        along_row(x.K, [&](long d, auto part) { total += load(q + g * ldk + d) * load_part(keys + t * key_row, d, x.K, part); });
        scores[g * padded(visible) + t] = sum(total);
      }
    for (long g = 0; g < group; g++) {
      float *row = scores + g * padded(visible), peak = row[0];
      for (long t = 1; t < held; t++) peak = row[t] > peak ? row[t] : peak;
      for (long t = held; t < padded(held); t++) row[t] = -__builtin_inff();
      vec total = {};
      for (long t = 0; t < held; t += VW) {
        vec p = exponential(load(row + t) - peak);
        store(row + t, p);
        total += p;
      }
      const float inverse = 1.0f / sum(total);
      for (long t = 0; t < held; t += VW) store(row + t, inverse * load(row + t));
    }
    for (long t = 0; t < held; t++)
      for (long g = 0; g < group; g++) {
        const float p = scores[g * padded(visible) + t];
        float* to = out + g * ldv;
        along_row(x.V, [&](long d, auto part) { store(to + d, load(to + d) + p * load_part(values + t * value_row, d, x.V, part)); });
      }
    for (long g = 0; g < group; g++) narrow(static_cast<T*>(x.out) + (n * x.H + j * group + g) * x.V, out + g * ldv, x.V);
  });
}

}  // namespace

void attention_step(const AttentionStep& x) { x.dtype == DType::bf16 ? attention_step_of<bf16>(x) : attention_step_of<float>(x); }

}  // namespace INTERLACE_ISA
