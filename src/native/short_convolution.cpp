// The causal depthwise convolution, SiLU fused. Names: src/interlace/ops/short_convolution/README.md.
//
// An item of work is a block of tokens of one segment and a block of channels: rows of its inputs stay in the first
// cache, and every sum over tokens is formed per item, so that the result does not depend on the number of threads.
namespace INTERLACE_ISA {
namespace {

constexpr long TOKENS = 64, CHANNELS = 512;

struct Block {
  long segment, first, end, start;  // tokens [first, end) of the segment [start, ...)
};

long token_blocks(const ShortConvolution& x) {
  long count = 0;
  for (long n = 0; n < x.N; n++) count += (x.offsets[n + 1] - x.offsets[n] + TOKENS - 1) / TOKENS;
  return count;
}

void fill_blocks(const ShortConvolution& x, Block* blocks) {
  for (long n = 0; n < x.N; n++)
    for (long t = x.offsets[n]; t < x.offsets[n + 1]; t += TOKENS)
      *blocks++ = {n, t, least(t + TOKENS, x.offsets[n + 1]), x.offsets[n]};
}

// taps [W, D] as floats, from weight [D, W].
template <class U>
void lay_taps(float* taps, const void* weight, long D, long W, long ld) {
  for (long d = 0; d < D; d++)
    for (long j = 0; j < W; j++) {
      const U* w = static_cast<const U*>(weight) + d * W + j;
      float buffer[VW];
      store(buffer, load_first(w, 1));
      taps[j * ld + d] = buffer[0];
    }
}

// The inputs of one item as rows of the same channels: a row before the segment's start is the state's, or zero.
template <class T>
struct Inputs {
  const ShortConvolution& x;
  long segment, start, channel;
  const T* zeros;

  const T* row(long t) const {
    if (t >= start) return static_cast<const T*>(x.x) + t * x.x_row + channel;
    if (!x.state) return zeros;
    return static_cast<const T*>(x.state) + ((segment * (x.W - 1)) + x.W - 1 + t - start) * x.D + channel;
  }
};

// W as a constant where it is the usual 4, for unrolled loops.
template <class Body>
void with_width(long W, const Body& body) {
  if (W == 4) body(Int<4>{});
  else body(Int<0>{});
}

template <class T, int FIXED, bool ACTIVATED>
void forward_rows(const ShortConvolution& x, const Inputs<T>& in, const float* taps, long ld, long first, long end, long columns) {
  const long W = FIXED ? FIXED : x.W;
  for (long t = first; t < end; t++) {
    const T* rows[FIXED ? FIXED : 64];
    for (long j = 0; j < W; j++) rows[j] = in.row(t - (W - 1) + j);
    T* out = static_cast<T*>(x.out) + t * x.D + in.channel;
    for (long d = 0; d < columns; d += VW) {
      const long left = columns - d;
      vec y = {};
#pragma GCC unroll 4
      for (long j = 0; j < W; j++) y += load(taps + j * ld + d) * load_up_to(rows[j] + d, left);
      store_up_to(out + d, ACTIVATED ? silu(y) : y, left);
    }
  }
}

template <class T>
void forward(const ShortConvolution& x) {
  const long ld = leading(x.D), blocks = token_blocks(x), strips = (x.D + CHANNELS - 1) / CHANNELS;
  float* memory = scratch_memory(x.W * ld + blocks * (sizeof(Block) / sizeof(float)) + CHANNELS);
  float *taps = memory, *zeros = taps + x.W * ld;
  Block* list = reinterpret_cast<Block*>(zeros + CHANNELS);
  fill_blocks(x, list);
  memset(taps, 0, (x.W * ld + CHANNELS) * sizeof(float));
  x.weight_dtype == DType::bf16 ? lay_taps<bf16>(taps, x.weight, x.D, x.W, ld) : lay_taps<float>(taps, x.weight, x.D, x.W, ld);
  parallel(blocks * strips, x.threads, [&](long index) {
    const Block& block = list[index / strips];
    long channel = index % strips * CHANNELS, columns = least(CHANNELS, x.D - channel);
    Inputs<T> in = {x, block.segment, block.start, channel, reinterpret_cast<const T*>(zeros)};
    with_width(x.W, [&](auto fixed) {
      constexpr int F = decltype(fixed)::value;
      if (x.activated) forward_rows<T, F, true>(x, in, taps + channel, ld, block.first, block.end, columns);
      else forward_rows<T, F, false>(x, in, taps + channel, ld, block.first, block.end, columns);
    });
    if (block.end != x.offsets[block.segment + 1]) return;
    for (long j = 0; j < x.W - 1; j++) {  // the window that the segment's next token will see
      T* to = static_cast<T*>(x.windows) + (block.segment * (x.W - 1) + j) * x.D + channel;
      memcpy(to, in.row(block.end - (x.W - 1) + j), columns * sizeof(T));
    }
  });
}

// One item of the way back. dz_t = d_out_t slope(z_t), with z computed again; dx_t = sum_j taps_j dz_{t+W-1-j}.
template <class T, int FIXED, bool ACTIVATED>
void backward_rows(const ShortConvolution& x, const Inputs<T>& in, const Block& block, const float* taps, float* d_taps,
                   long ld, float* ring, long columns) {
  const long W = FIXED ? FIXED : x.W, stop = x.offsets[block.segment + 1], last = least(block.end + W - 1, stop);
  const long begin = block.first == block.start ? block.first - (W - 1) : block.first;  // the state's rows too
  const T* windows = static_cast<const T*>(x.d_windows);
  for (long t = block.first; t < block.end + W - 1; t++) {  // row t completes dx_{t-(W-1)}
    float* dz = ring + (t - block.first) % W * CHANNELS;
    if (t < last) {
      const T* rows[FIXED ? FIXED : 64];
      for (long j = 0; j < W; j++) rows[j] = in.row(t - (W - 1) + j);
      const T* d_out = static_cast<const T*>(x.d_out) + t * x.D + in.channel;
      for (long d = 0; d < columns; d += VW) {
        const long left = columns - d;
        vec slope = load_up_to(d_out + d, left), y = {};
        vec inputs[FIXED ? FIXED : 64];
#pragma GCC unroll 4
        for (long j = 0; j < W; j++) {
          inputs[j] = load_up_to(rows[j] + d, left);
          y += load(taps + j * ld + d) * inputs[j];
        }
        if (ACTIVATED) slope = slope * silu_slope(y);
        store(dz + d, slope);
        if (t >= block.end) continue;  // a row of the next block: it counts there
#pragma GCC unroll 4
        for (long j = 0; j < W; j++) {
          float* to = d_taps + j * CHANNELS + d;
          store(to, load(to) + slope * inputs[j]);
        }
      }
    } else {
      memset(dz, 0, CHANNELS * sizeof(float));
    }
    const long target = t - (W - 1);
    if (target < begin) continue;
    if (target < block.start && !x.d_state) continue;
    T* to = target >= block.start ? static_cast<T*>(x.d_x) + target * x.D + in.channel
                                  : static_cast<T*>(x.d_state) + (block.segment * (W - 1) + target - block.start + W - 1) * x.D + in.channel;
    const long kept = target - (stop - (W - 1));  // the row of the window that this input became, if it did
    const T* extra = windows && kept >= 0 ? windows + (block.segment * (W - 1) + kept) * x.D + in.channel : nullptr;
    for (long d = 0; d < columns; d += VW) {
      vec total = extra ? load_up_to(extra + d, columns - d) : vec{};
#pragma GCC unroll 4
      for (long j = 0; j < W; j++) {
        long source = target + W - 1 - j;  // tap j saw this input when it made that row
        if (source >= block.first) total += load(taps + j * ld + d) * load(ring + (source - block.first) % W * CHANNELS + d);
      }
      store_up_to(to + d, total, columns - d);
    }
  }
}

template <class T>
void backward(const ShortConvolution& x) {
  const long ld = leading(x.D), blocks = token_blocks(x), strips = (x.D + CHANNELS - 1) / CHANNELS;
  const long part = x.W * CHANNELS, list_floats = blocks * (sizeof(Block) / sizeof(float));
  float* memory = scratch_memory(x.W * ld + CHANNELS + list_floats + blocks * strips * part + x.threads * part);
  float *taps = memory, *zeros = taps + x.W * ld, *parts = zeros + CHANNELS + list_floats, *rings = parts + blocks * strips * part;
  Block* list = reinterpret_cast<Block*>(zeros + CHANNELS);
  fill_blocks(x, list);
  memset(taps, 0, (x.W * ld + CHANNELS) * sizeof(float));
  x.weight_dtype == DType::bf16 ? lay_taps<bf16>(taps, x.weight, x.D, x.W, ld) : lay_taps<float>(taps, x.weight, x.D, x.W, ld);
  parallel(blocks * strips, x.threads, [&](long index) {
    const Block& block = list[index / strips];
    long channel = index % strips * CHANNELS, columns = least(CHANNELS, x.D - channel);
    float *d_taps = parts + index * part, *ring = rings + thread_index() * part;
    memset(d_taps, 0, part * sizeof(float));
    Inputs<T> in = {x, block.segment, block.start, channel, reinterpret_cast<const T*>(zeros)};
    with_width(x.W, [&](auto fixed) {
      constexpr int F = decltype(fixed)::value;
      if (x.activated) backward_rows<T, F, true>(x, in, block, taps + channel, d_taps, ld, ring, columns);
      else backward_rows<T, F, false>(x, in, block, taps + channel, d_taps, ld, ring, columns);
    });
  });
  parallel(strips, x.threads, [&](long strip) {  // the blocks' parts in their order, whoever made them
    long channel = strip * CHANNELS, columns = least(CHANNELS, x.D - channel);
    float* total = parts + strip * part;
    for (long block = 1; block < blocks; block++)
      for (long i = 0; i < part; i += VW) store(total + i, load(total + i) + load(parts + (block * strips + strip) * part + i));
    for (long d = 0; d < columns; d++)
      for (long j = 0; j < x.W; j++) x.d_weight[(channel + d) * x.W + j] = total[j * CHANNELS + d];
  });
}

}  // namespace

void short_convolution_forward(const ShortConvolution& x) {
  x.dtype == DType::bf16 ? forward<bf16>(x) : forward<float>(x);
}

void short_convolution_backward(const ShortConvolution& x) {
  x.dtype == DType::bf16 ? backward<bf16>(x) : backward<float>(x);
}

}  // namespace INTERLACE_ISA
