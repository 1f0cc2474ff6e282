// interlace._native: picks the kernels that this processor can run, and hands them pointers from Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <climits>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>
#ifdef INTERLACE_THREADS
#include <omp.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "arguments.h"

namespace nb = nanobind;

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_avx512bf16, kernels_neon;

int interlace_most_threads = INT_MAX;

namespace {

struct Level {
  const Kernels* kernels;
  bool supported;
};

// From the widest to the plainest, those that were built.
std::vector<Level> levels() {
  std::vector<Level> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  (void)avx2, (void)avx512;
#endif
#ifdef INTERLACE_HAS_avx512bf16
  found.push_back({&kernels_avx512bf16, avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")});
#endif
#ifdef INTERLACE_HAS_avx512
  found.push_back({&kernels_avx512, avx512});
#endif
#ifdef INTERLACE_HAS_avx2
  found.push_back({&kernels_avx2, avx2});
#endif
#ifdef INTERLACE_HAS_neon
  found.push_back({&kernels_neon, true});
#endif
#ifdef INTERLACE_HAS_portable
  found.push_back({&kernels_portable, true});
#endif
  return found;
}

const Kernels* active = nullptr;

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Level& level : levels())
    if (level.supported) names.push_back(level.kernels->name);
  return names;
}

void use(const std::string& name) {
  for (const Level& level : levels())
    if (level.supported && (name.empty() || name == level.kernels->name)) {
      active = level.kernels;
      return;
    }
  throw std::invalid_argument(name);
}

int threads_of_torch() {
#ifdef INTERLACE_THREADS
  return omp_get_max_threads();
#else
  return 1;
#endif
}

bool keep_memory() {
#ifdef __GLIBC__
  return mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, INT_MAX);
#else
  return false;
#endif
}

bool return_memory() {
#ifdef __GLIBC__
  return mallopt(M_MMAP_THRESHOLD, 128 << 10) && mallopt(M_TRIM_THRESHOLD, 1 << 20);
#else
  return false;
#endif
}

template <class T>
T* pointer(size_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = size_t;

// tensors: query, key, value, log_decay, beta, offsets, state; sizes as ops/gated_delta/native.py's `prepare` has them.
void fill(GatedDeltaArguments& x, const std::vector<Address>& tensors, const std::vector<long>& sizes, float scale) {
  x.query = pointer<void>(tensors[0]), x.key = pointer<void>(tensors[1]), x.value = pointer<void>(tensors[2]);
  x.log_decay = pointer<float>(tensors[3]), x.beta = pointer<float>(tensors[4]);
  x.offsets = pointer<int32_t>(tensors[5]), x.state = pointer<float>(tensors[6]);
  x.N = sizes[0], x.H = sizes[1], x.G = sizes[2], x.K = sizes[3], x.V = sizes[4];
  x.q_row = sizes[5], x.k_row = sizes[6], x.v_row = sizes[7];
  x.qk_dtype = DType(sizes[8]), x.v_dtype = DType(sizes[9]);
  x.normalise = sizes[10], x.threads = sizes[11], x.scale = scale;
}

using Forward = void (*Kernels::*)(const GatedDeltaForward&);
using Step = void (*Kernels::*)(const GatedDeltaStep&);

template <Forward kernel>
void rule_forward(std::vector<Address> in, std::vector<long> sizes, float scale, std::vector<Address> out) {
  nb::gil_scoped_release released;
  GatedDeltaForward x{};
  fill(x, in, sizes, scale);
  x.out = pointer<void>(out[0]), x.final_state = pointer<float>(out[1]), x.snapshots = pointer<float>(out[2]);
  (active->*kernel)(x);
}

template <Step kernel>
void rule_step(std::vector<Address> in, std::vector<long> sizes, float scale, Address out, Address memory) {
  nb::gil_scoped_release released;
  GatedDeltaStep x{};
  fill(x, in, sizes, scale);
  x.out = pointer<void>(out), x.memory = pointer<float>(memory);
  (active->*kernel)(x);
}

void selective_scan(std::vector<Address> in, std::vector<long> sizes, Address out, Address final_state) {
  nb::gil_scoped_release released;
  SelectiveScan x{};
  x.x = pointer<void>(in[0]), x.step = pointer<float>(in[1]), x.A = pointer<float>(in[2]);
  x.B = pointer<void>(in[3]), x.C = pointer<void>(in[4]), x.offsets = pointer<int32_t>(in[5]), x.state = pointer<float>(in[6]);
  x.N = sizes[0], x.D = sizes[1], x.K = sizes[2], x.x_row = sizes[3], x.b_row = sizes[4], x.c_row = sizes[5];
  x.dtype = DType(sizes[6]), x.threads = sizes[7];
  x.out = pointer<void>(out), x.final_state = pointer<float>(final_state);
  active->selective_scan(x);
}

void gated_delta_backward(std::vector<Address> in, std::vector<long> sizes, float scale, std::vector<Address> given,
                          std::vector<Address> out) {
  nb::gil_scoped_release released;
  GatedDeltaBackward x{};
  fill(x, in, sizes, scale);
  x.d_out = pointer<void>(given[0]), x.d_final = pointer<float>(given[1]), x.snapshots = pointer<float>(given[2]);
  x.d_query = pointer<void>(out[0]), x.d_key = pointer<void>(out[1]), x.d_value = pointer<void>(out[2]);
  x.d_log_decay = pointer<float>(out[3]), x.d_beta = pointer<float>(out[4]), x.d_state = pointer<float>(out[5]);
  active->gated_delta_backward(x);
}

ShortConvolution convolution(const std::vector<Address>& in, const std::vector<long>& sizes) {
  ShortConvolution x{};
  x.x = pointer<void>(in[0]), x.weight = pointer<void>(in[1]), x.offsets = pointer<int32_t>(in[2]);
  x.state = pointer<void>(in[3]);
  x.N = sizes[0], x.D = sizes[1], x.W = sizes[2], x.x_row = sizes[3];
  x.dtype = DType(sizes[4]), x.weight_dtype = DType(sizes[5]), x.activated = sizes[6], x.biased = sizes[7], x.threads = sizes[8];
  return x;
}

void short_convolution_forward(std::vector<Address> in, std::vector<long> sizes, Address out, Address windows) {
  nb::gil_scoped_release released;
  ShortConvolution x = convolution(in, sizes);
  x.out = pointer<void>(out), x.windows = pointer<void>(windows);
  active->short_convolution_forward(x);
}

void short_convolution_backward(std::vector<Address> in, std::vector<long> sizes, std::vector<Address> given,
                                std::vector<Address> out) {
  nb::gil_scoped_release released;
  ShortConvolution x = convolution(in, sizes);
  x.d_out = pointer<void>(given[0]), x.d_windows = pointer<void>(given[1]);
  x.d_x = pointer<void>(out[0]), x.d_weight = pointer<float>(out[1]), x.d_state = pointer<void>(out[2]);
  active->short_convolution_backward(x);
}

RMSNorm norm(const std::vector<Address>& in, const std::vector<long>& sizes, std::vector<float> numbers) {
  RMSNorm x{};
  x.x = pointer<void>(in[0]), x.before = pointer<void>(in[1]), x.after = pointer<void>(in[2]);
  x.gate = pointer<void>(in[3]), x.weight = pointer<void>(in[4]);
  x.x_dtype = DType(sizes[0]), x.before_dtype = DType(sizes[1]), x.after_dtype = DType(sizes[2]);
  x.gate_dtype = DType(sizes[3]), x.weight_dtype = DType(sizes[4]), x.out_dtype = DType(sizes[5]);
  x.x_row = sizes[6], x.before_row = sizes[7], x.after_row = sizes[8], x.gate_row = sizes[9];
  x.rows = sizes[10], x.heads = sizes[11], x.D = sizes[12], x.threads = sizes[13];
  x.sigmoid = sizes[14], x.gate_first = sizes[15], x.per_head = sizes[16];
  x.eps = numbers[0], x.offset = numbers[1];
  return x;
}

void rms_norm_forward(std::vector<Address> in, std::vector<long> sizes, std::vector<float> numbers, std::vector<Address> out) {
  nb::gil_scoped_release released;
  RMSNorm x = norm(in, sizes, numbers);
  x.out = pointer<void>(out[0]), x.sum = pointer<void>(out[1]), x.inverse = pointer<float>(out[2]);
  active->rms_norm_forward(x);
}

void rms_norm_backward(std::vector<Address> in, std::vector<long> sizes, std::vector<float> numbers, std::vector<Address> given,
                       std::vector<Address> out) {
  nb::gil_scoped_release released;
  RMSNorm x = norm(in, sizes, numbers);
  x.d_out = pointer<void>(given[0]), x.d_sum = pointer<void>(given[1]), x.inverse = pointer<float>(given[2]);
  x.d_x = pointer<void>(out[0]), x.d_before = pointer<void>(out[1]), x.d_gate = pointer<void>(out[2]);
  x.d_weight = pointer<float>(out[3]);
  active->rms_norm_backward(x);
}

void swiglu(Address gate, Address up, int dtype, long row, long rows, long D, int threads, Address out) {
  nb::gil_scoped_release released;
  SwiGLU x{};
  x.gate = pointer<void>(gate), x.up = pointer<void>(up), x.dtype = DType(dtype), x.row = row, x.rows = rows, x.D = D;
  x.threads = threads, x.out = pointer<void>(out);
  active->swiglu_forward(x);
}

void swiglu_backward(Address d_out, Address gate, Address up, int dtype, long row, long rows, long D, int threads,
                     Address d_gate, Address d_up) {
  nb::gil_scoped_release released;
  SwiGLU x{};
  x.gate = pointer<void>(gate), x.up = pointer<void>(up), x.dtype = DType(dtype), x.row = row, x.rows = rows, x.D = D;
  x.d_out = pointer<void>(d_out), x.threads = threads, x.d_gate = pointer<void>(d_gate), x.d_up = pointer<void>(d_up);
  active->swiglu_backward(x);
}

void decay_gate(std::vector<Address> in, std::vector<long> sizes, std::vector<float> limits, std::vector<Address> out) {
  nb::gil_scoped_release released;
  DecayGate x{};
  x.x = pointer<void>(in[0]), x.dt_bias = pointer<float>(in[1]), x.A_log = pointer<float>(in[2]);
  x.total = sizes[0], x.C = sizes[1], x.G = sizes[2], x.row = sizes[3], x.dtype = DType(sizes[4]), x.threads = int(sizes[5]);
  x.low = limits[0], x.high = limits[1], x.log_decay = pointer<float>(out[0]), x.step = pointer<float>(out[1]);
  active->decay_gate(x);
}

void rope(Address in, Address cos, Address sin, int dtype, std::vector<long> sizes, bool back, int threads, Address out) {
  nb::gil_scoped_release released;
  Rope x{};
  x.x = pointer<void>(in), x.cos = pointer<float>(cos), x.sin = pointer<float>(sin), x.dtype = DType(dtype);
  x.total = sizes[0], x.heads = sizes[1], x.dim = sizes[2], x.turning = sizes[3], x.row = sizes[4];
  x.sign = back ? -1.0f : 1.0f, x.threads = threads, x.out = pointer<void>(out);
  active->rope(x);
}

void cross_entropy(Address logits, Address targets, int dtype, long rows, long D, long ignored, float factor, int threads,
                   Address losses) {
  nb::gil_scoped_release released;
  active->cross_entropy({pointer<void>(logits), pointer<int64_t>(targets), DType(dtype), rows, D, ignored, factor, threads,
                         pointer<float>(losses)});
}

void linear(Address x, Address weight, Address residual, int dtype, long rows, long outputs, long D, int threads, Address out) {
  nb::gil_scoped_release released;
  active->linear({pointer<void>(x), pointer<void>(weight), pointer<void>(residual), {}, DType(dtype), rows, outputs, D, threads,
                  pointer<void>(out)});
}

// words, scales and minima (or null); bits and inputs of a group.
QuantisedWeight quantised(const std::vector<Address>& in, const std::vector<long>& sizes) {
  return {pointer<int32_t>(in[0]), pointer<bf16>(in[1]), pointer<bf16>(in[2]), sizes[0], sizes[1]};
}

void linear_quantised(Address x, std::vector<Address> weight, std::vector<long> how, Address residual, int dtype, long rows,
                      long outputs, long D, int threads, Address out) {
  nb::gil_scoped_release released;
  active->linear({pointer<void>(x), nullptr, pointer<void>(residual), quantised(weight, how), DType(dtype), rows, outputs, D,
                  threads, pointer<void>(out)});
}

// Whether every choice names an expert; nothing is read or written otherwise.
bool experts_of(Experts x, const std::vector<Address>& in, const std::vector<long>& sizes, Address out) {
  x.x = pointer<void>(in[0]), x.chosen = pointer<int64_t>(in[1]), x.weights = pointer<float>(in[2]);
  x.dtype = DType(sizes[0]), x.rows = sizes[1], x.k = sizes[2], x.D = sizes[3], x.A = sizes[4], x.I = sizes[5];
  x.outputs = sizes[6], x.gated = sizes[7], x.threads = sizes[8], x.out = pointer<void>(out);
  for (long p = 0; p < x.rows * x.k; p++)
    if (x.chosen[p] < 0 || x.chosen[p] >= sizes[9]) return false;
  active->experts(x);
  return true;
}

bool experts(std::vector<Address> in, Address first, Address second, std::vector<long> sizes, Address out) {
  nb::gil_scoped_release released;
  Experts x{};
  x.first = pointer<void>(first), x.second = pointer<void>(second);
  return experts_of(x, in, sizes, out);
}

bool experts_quantised(std::vector<Address> in, std::vector<Address> first, std::vector<Address> second, std::vector<long> how,
                       std::vector<long> sizes, Address out) {
  nb::gil_scoped_release released;
  Experts x{};
  x.quantised_first = quantised(first, how), x.quantised_second = quantised(second, how);
  return experts_of(x, in, sizes, out);
}

void attention_step(std::vector<Address> in, std::vector<long> sizes, float scale, Address out) {
  nb::gil_scoped_release released;
  AttentionStep x{};
  x.query = pointer<void>(in[0]), x.key = pointer<void>(in[1]), x.value = pointer<void>(in[2]);
  x.caches = pointer<Cache>(in[3]), x.positions = pointer<int64_t>(in[4]);
  x.dtype = DType(sizes[0]), x.q_row = sizes[1], x.k_row = sizes[2], x.v_row = sizes[3];
  x.N = sizes[4], x.H = sizes[5], x.J = sizes[6], x.K = sizes[7], x.V = sizes[8];
  x.window = sizes[9], x.threads = sizes[10];
  x.scale = scale, x.out = pointer<void>(out);
  for (long n = 0; n < x.N; n++)  // else the token would be written into somebody else's memory
    if ((x.window ? x.positions[n] % x.window : x.positions[n]) >= x.caches[n].capacity)
      throw std::out_of_range("attention_step: a cache has no space for one more token");
  active->attention_step(x);
}

void mixer_step(std::vector<Address> in, std::vector<long> sizes, float scale, float eps, Address out) {
  nb::gil_scoped_release released;
  MixerStep x{};
  x.projected = pointer<void>(in[0]), x.taps = pointer<void>(in[1]), x.norm = pointer<void>(in[2]);
  x.A_log = pointer<float>(in[3]), x.dt_bias = pointer<float>(in[4]);
  x.window = pointer<void>(in[5]), x.memory = pointer<float>(in[6]);
  x.dtype = DType(sizes[0]), x.row = sizes[1], x.N = sizes[2], x.H = sizes[3], x.G = sizes[4], x.K = sizes[5];
  x.V = sizes[6], x.W = sizes[7], x.negative = sizes[8], x.threads = sizes[9];
  x.scale = scale, x.eps = eps, x.out = pointer<void>(out);
  active->mixer_step(x);
}

Attention attention(const std::vector<Address>& in, const std::vector<long>& sizes, float scale) {
  Attention x{};
  x.query = pointer<void>(in[0]), x.key = pointer<void>(in[1]), x.value = pointer<void>(in[2]);
  x.offsets = pointer<int32_t>(in[3]), x.out = pointer<void>(in[4]), x.weight = pointer<float>(in[5]);
  x.dtype = DType(sizes[0]), x.q_row = sizes[1], x.k_row = sizes[2], x.v_row = sizes[3];
  x.N = sizes[4], x.H = sizes[5], x.J = sizes[6], x.K = sizes[7], x.V = sizes[8], x.window = sizes[9];
  x.threads = sizes[10], x.scale = scale;
  x.past = sizes.size() > 11 ? sizes[11] : 0;
  return x;
}

void attention_forward(std::vector<Address> in, std::vector<long> sizes, float scale) {
  nb::gil_scoped_release released;
  active->attention_forward(attention(in, sizes, scale));
}

void attention_backward(std::vector<Address> in, std::vector<long> sizes, float scale, Address d_out, std::vector<Address> out) {
  nb::gil_scoped_release released;
  Attention x = attention(in, sizes, scale);
  x.d_out = pointer<void>(d_out);
  x.d_query = pointer<void>(out[0]), x.d_key = pointer<void>(out[1]), x.d_value = pointer<void>(out[2]);
  active->attention_backward(x);
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels; interlace.ops.core.kernels calls them. An address of 0 stands for an absent tensor.";
  m.attr("SNAPSHOT_TOKENS") = SNAPSHOT_TOKENS;
  use("");
  m.def("instruction_sets", &instruction_sets, "Those built here that this processor has, the widest first.");
  m.def("use", &use, "Run the kernels of this instruction set from now on.", nb::arg("name"));
  m.def("most_threads", [] { return __atomic_load_n(&interlace_most_threads, __ATOMIC_RELAXED); });
  m.def("use_at_most", [](int threads) { __atomic_store_n(&interlace_most_threads, threads, __ATOMIC_RELAXED); },
        "Threads of any region from now on.");
  m.def("active", [] { return std::string(active->name); }, "The instruction set in use.");
  m.def("threads_of_torch", &threads_of_torch, "Threads of the OpenMP runtime; torch's number if it is the same one.");
  m.def("keep_memory", &keep_memory, "Never give freed memory back to the system; false where malloc has no such switch.");
  m.def("return_memory", &return_memory, "Give freed memory back to the system at once; false where malloc has no such switch.");
  m.def("gated_delta_forward", &rule_forward<&Kernels::gated_delta_forward>);
  m.def("gated_delta_backward", &gated_delta_backward);
  m.def("gated_delta_step", &rule_step<&Kernels::gated_delta_step>);
  m.def("state_space_forward", &rule_forward<&Kernels::state_space_forward>);
  m.def("state_space_step", &rule_step<&Kernels::state_space_step>);
  m.def("kimi_delta_forward", &rule_forward<&Kernels::kimi_delta_forward>);
  m.def("kimi_delta_step", &rule_step<&Kernels::kimi_delta_step>);
  m.def("selective_scan", &selective_scan);
  m.def("short_convolution_forward", &short_convolution_forward);
  m.def("short_convolution_backward", &short_convolution_backward);
  m.def("rms_norm_forward", &rms_norm_forward);
  m.def("rms_norm_backward", &rms_norm_backward);
  m.def("swiglu", &swiglu);
  m.def("swiglu_backward", &swiglu_backward);
  m.def("rope", &rope);
  m.def("decay_gate", &decay_gate);
  m.def("cross_entropy", &cross_entropy);
  m.def("linear", &linear);
  m.def("linear_quantised", &linear_quantised);
  m.def("experts", &experts);
  m.def("experts_quantised", &experts_quantised);
  m.def("mixer_step", &mixer_step);
  m.def("attention_step", &attention_step);
  m.def("attention_forward", &attention_forward);
  m.def("attention_backward", &attention_backward);
}
