// step = clamp(softplus(x + dt_bias), low, high) and log_decay = -exp(A_log) step, of each token and channel.
namespace INTERLACE_ISA {
namespace {

constexpr long GATE_BLOCK = 4096;  // elements

// log(1 + e^x). log(1 + e) = 2 atanh(e / (2 + e)), and e = e^-|x| is at most 1: eight terms of the series are exact.
inline vec softplus(vec x) {
  const vec zero = {};
  vec e = exponential(select(x > zero, -x, x)), z = e / (2.0f + e), s = z * z;
  vec y = s * (1 / 15.0f) + 1 / 13.0f;
  y = y * s + 1 / 11.0f;
  y = y * s + 1 / 9.0f;
  y = y * s + 1 / 7.0f;
  y = y * s + 1 / 5.0f;
  y = y * s + 1 / 3.0f;
  y = y * s + 1.0f;
  return larger(x, zero) + 2.0f * z * y;
}

template <class T>
void decay_gate(const DecayGate& x) {
  float* rates = scratch_memory(padded(x.C));  // one channel's after the other
  if (x.A_log)
    for (long c = 0; c < x.C; c++) rates[c] = -__builtin_expf(x.A_log[c / (x.C / x.G)]);
  const long block = most(1, GATE_BLOCK / x.C);
  parallel((x.total + block - 1) / block, x.threads, [&](long index) {
    for (long t = index * block; t < least(x.total, (index + 1) * block); t++)
      along_row(x.C, [&](long d, auto part) {
        vec step = softplus(load_part(static_cast<const T*>(x.x) + t * x.row, d, x.C, part) + load_part(x.dt_bias, d, x.C, part));
        step = select(step < splat(x.low), splat(x.low), step);  // a NaN stays
        step = select(step > splat(x.high), splat(x.high), step);
        if (x.step) store_part(x.step + t * x.C, step, d, x.C, part);
        if (x.A_log) store_part(x.log_decay + t * x.C, step * load_part(rates, d, x.C, part), d, x.C, part);
      });
  });
}

}  // namespace

void decay_gate(const DecayGate& x) { x.dtype == DType::bf16 ? decay_gate<bf16>(x) : decay_gate<float>(x); }

}  // namespace INTERLACE_ISA
