// The causal depthwise convolution, SiLU fused. Names: src/interlace/ops/short_convolution/README.md.
//
// An item of work is a block of tokens of one segment and a block of channels: rows of its inputs stay in the first
// cache, and every sum over tokens is formed per item, so that the result does not depend on the number of threads.
namespace INTERLACE_ISA {
namespace {

constexpr long TOKENS = 64, CHANNELS = 4096, MOST_TAPS = 64;

// Channels of an item's rows: whole rows of x where possible, since memory is read fastest in one go.
inline long strip_of(const ShortConvolution& x) { return least(CHANNELS, padded(x.D)); }

struct Block {
  long segment, first, end, start;  // tokens [first, end) of the segment [start, ...)
};

inline long columns_of(const ShortConvolution& x) { return x.W + x.biased; }

// taps [W + biased, D] as floats, from weight [D, W + biased].
template <class U>
void lay_taps(float* taps, const void* weight, long D, long W, long ld) {
  for (long d = 0; d < D; d++)
    for (long j = 0; j < W; j++) taps[j * ld + d] = value(static_cast<const U*>(weight) + d * W + j);
}

// How the work is cut, and what all its items read: taps as floats, a row of zeros, the blocks of tokens.
struct Cut {
  long ld, strip, strips, blocks = 0;  // strips of channels
  float *taps, *zeros;
  Block* list;

  explicit Cut(const ShortConvolution& x) : ld(leading(x.D)), strip(strip_of(x)), strips((x.D + strip - 1) / strip) {
    for (long n = 0; n < x.N; n++) blocks += (x.offsets[n + 1] - x.offsets[n] + TOKENS - 1) / TOKENS;
  }

  long floats(long rows) const { return rows * ld + strip + blocks * (sizeof(Block) / sizeof(float)); }

  // Fills `memory`; returns what comes after it.
  float* lay(const ShortConvolution& x, float* memory) {
    const long rows = columns_of(x);
    taps = memory, zeros = taps + rows * ld, list = reinterpret_cast<Block*>(zeros + strip);
    memset(taps, 0, (rows * ld + strip) * sizeof(float));
    x.weight_dtype == DType::bf16 ? lay_taps<bf16>(taps, x.weight, x.D, rows, ld) : lay_taps<float>(taps, x.weight, x.D, rows, ld);
    Block* next = list;
    for (long n = 0; n < x.N; n++)
      for (long t = x.offsets[n]; t < x.offsets[n + 1]; t += TOKENS)
        *next++ = {n, t, least(t + TOKENS, x.offsets[n + 1]), x.offsets[n]};
    return memory + floats(rows);
  }
};

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
    const T* rows[FIXED ? FIXED : MOST_TAPS];
    for (long j = 0; j < W; j++) rows[j] = in.row(t - (W - 1) + j);
    T* out = static_cast<T*>(x.out) + t * x.D + in.channel;
    along_row(columns, [&](long d, auto part) {
      vec y = x.biased ? load(taps + W * ld + d) : vec{};
#pragma GCC unroll 4
      for (long j = 0; j < W; j++) y += load(taps + j * ld + d) * load_part(rows[j], d, columns, part);
      store_part(out, ACTIVATED ? silu(y) : y, d, columns, part);
    });
  }
}

template <class T>
void forward(const ShortConvolution& x) {
  Cut cut(x);
  cut.lay(x, scratch_memory(cut.floats(columns_of(x))));
  parallel(cut.blocks * cut.strips, x.threads, [&](long index) {
    const Block& block = cut.list[index / cut.strips];
    const long channel = index % cut.strips * cut.strip, columns = least(cut.strip, x.D - channel);
    Inputs<T> in = {x, block.segment, block.start, channel, reinterpret_cast<const T*>(cut.zeros)};
    with_width(x.W, [&](auto fixed) {
      constexpr int F = decltype(fixed)::value;
      if (x.activated) forward_rows<T, F, true>(x, in, cut.taps + channel, cut.ld, block.first, block.end, columns);
      else forward_rows<T, F, false>(x, in, cut.taps + channel, cut.ld, block.first, block.end, columns);
    });
    if (block.end != x.offsets[block.segment + 1]) return;
    for (long j = 0; j < x.W - 1; j++) {  // the window that the segment's next token will see
      T* to = static_cast<T*>(x.windows) + (block.segment * (x.W - 1) + j) * x.D + channel;
      memcpy(to, in.row(block.end - (x.W - 1) + j), columns * sizeof(T));
    }
  });
}

// dz_t = d_out_t slope(z_t) into `dz`, with z computed again; where the row is this item's own, d_taps too.
template <class T, int FIXED, bool ACTIVATED>
void slopes(const ShortConvolution& x, const Inputs<T>& in, long t, const float* taps, long ld, float* dz, float* d_taps,
            long wide, long columns) {
  const long W = FIXED ? FIXED : x.W;
  const T* rows[FIXED ? FIXED : MOST_TAPS];
  for (long j = 0; j < W; j++) rows[j] = in.row(t - (W - 1) + j);
  const T* d_out = static_cast<const T*>(x.d_out) + t * x.D + in.channel;
  along_row(columns, [&](long d, auto part) {
    vec slope = load_part(d_out, d, columns, part), y = x.biased ? load(taps + W * ld + d) : vec{};
    vec inputs[FIXED ? FIXED : MOST_TAPS];
#pragma GCC unroll 4
    for (long j = 0; j < W; j++) {
      inputs[j] = load_part(rows[j], d, columns, part);
      y += load(taps + j * ld + d) * inputs[j];
    }
    if (ACTIVATED) slope = slope * silu_slope(y);
    store(dz + d, slope);
    if (!d_taps) return;
#pragma GCC unroll 4
    for (long j = 0; j < W; j++) {
      float* to = d_taps + j * wide + d;
      store(to, load(to) + slope * inputs[j]);
    }
    if (x.biased) store(d_taps + W * wide + d, load(d_taps + W * wide + d) + slope);
  });
}

// One item of the way back: dx_t = sum_j taps_j dz_{t+W-1-j}. Rows of the next block that reach back are computed
// again here; rows before the segment's start are the state's.
template <class T, int FIXED, bool ACTIVATED>
void backward_rows(const ShortConvolution& x, const Inputs<T>& in, const Block& block, const float* taps, float* d_taps,
                   long ld, float* ring, long columns) {
  const long W = FIXED ? FIXED : x.W, wide = strip_of(x), stop = x.offsets[block.segment + 1];
  const long begin = block.first > block.start ? block.first : block.start - (x.d_state ? W - 1 : 0);
  const long window = block.segment * (W - 1) - (stop - (W - 1));  // row of `windows` that token t became: window + t
  memset(ring, 0, W * wide * sizeof(float));
  for (long t = block.first; t < block.end + W - 1; t++) {  // row t completes dx of token t - (W - 1)
    float* dz = ring + (t - block.first) % W * wide;
    if (t < stop) slopes<T, FIXED, ACTIVATED>(x, in, t, taps, ld, dz, t < block.end ? d_taps : nullptr, wide, columns);
    else memset(dz, 0, wide * sizeof(float));
    const long token = t - (W - 1);
    if (token < begin) continue;
    const float* later[FIXED ? FIXED : MOST_TAPS];  // dz of the rows that saw this token with tap j
    for (long j = 0; j < W; j++) later[j] = ring + (t - j - block.first + W) % W * wide;
    const bool real = token >= block.start;
    T* to = real ? static_cast<T*>(x.d_x) + token * x.D : static_cast<T*>(x.d_state) + (block.segment * (W - 1) + token - block.start + W - 1) * x.D;
    const bool kept = x.d_windows && token >= stop - (W - 1);
    const T* extra = static_cast<const T*>(x.d_windows) + (kept ? (window + token) * x.D + in.channel : 0);
    to += in.channel;
    along_row(columns, [&](long d, auto part) {
      vec total = kept ? load_part(extra, d, columns, part) : vec{};
#pragma GCC unroll 4
      for (long j = 0; j < W; j++) total += load(taps + j * ld + d) * load(later[j] + d);
      store_part(to, total, d, columns, part);
    });
  }
}

template <class T>
void backward(const ShortConvolution& x) {
  Cut cut(x);
  const long strip = cut.strip, strips = cut.strips, blocks = cut.blocks, rows = columns_of(x), part = rows * strip;
  float* parts = cut.lay(x, scratch_memory(cut.floats(rows) + (blocks * strips + x.threads) * part));
  float* rings = parts + blocks * strips * part;
  parallel(blocks * strips, x.threads, [&](long index) {
    const Block& block = cut.list[index / strips];
    const long channel = index % strips * strip, columns = least(strip, x.D - channel);
    float *d_taps = parts + index * part, *ring = rings + thread_index() * part;
    memset(d_taps, 0, part * sizeof(float));
    Inputs<T> in = {x, block.segment, block.start, channel, reinterpret_cast<const T*>(cut.zeros)};
    with_width(x.W, [&](auto fixed) {
      constexpr int F = decltype(fixed)::value;
      if (x.activated) backward_rows<T, F, true>(x, in, block, cut.taps + channel, d_taps, cut.ld, ring, columns);
      else backward_rows<T, F, false>(x, in, block, cut.taps + channel, d_taps, cut.ld, ring, columns);
    });
  });
  parallel(strips, x.threads, [&](long which) {  // the blocks' parts in their order, whoever made them
    const long channel = which * strip, columns = least(strip, x.D - channel);
    float* total = parts + which * part;
    for (long block = 1; block < blocks; block++)
      for (long i = 0; i < part; i += VW) store(total + i, load(total + i) + load(parts + (block * strips + which) * part + i));
    for (long d = 0; d < columns; d++)
      for (long j = 0; j < rows; j++) x.d_weight[(channel + d) * rows + j] = total[j * strip + d];
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
