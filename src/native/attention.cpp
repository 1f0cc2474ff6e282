// Causal attention: whole sequences over themselves, forward and backward, and one token over what its sequence keeps.
// Names: src/interlace/ops/attention/README.md.
namespace INTERLACE_ISA {
namespace {

constexpr long TOKENS_AHEAD = 12;  // tokens: a head's rows lie apart, so that the processor does not foresee them

template <class T>
void fetch(const T* row, long n) {
  for (long d = 0; d < n; d += 64 / long(sizeof(T))) __builtin_prefetch(row + d);
}

template <class T>
void attention_step_of(const AttentionStep& x) {
  const long group = x.H / x.J, ldk = padded(x.K), ldv = padded(x.V);
  const bool own_values = x.value;  // else values are the first V elements of the keys
  long visible = 1;
  for (long n = 0; n < x.N; n++) visible = most(visible, x.window ? least(x.window, x.positions[n] + 1) : x.positions[n] + 1);
  const long floats = group * (ldk + padded(visible) + ldv) + LINE;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  parallel(x.N * x.J, x.threads, [&](long index) {
    const long n = index / x.J, j = index % x.J, seen = x.positions[n];
    const long slot = x.window ? seen % x.window : seen, held = x.window ? least(seen + 1, x.window) : seen + 1;
    const long key_row = x.J * x.K, value_row = own_values ? x.J * x.V : key_row;
    T* keys = reinterpret_cast<T*>(x.caches[n].keys) + j * x.K;
    T* values = own_values ? reinterpret_cast<T*>(x.caches[n].values) + j * x.V : keys;
    memcpy(keys + slot * key_row, static_cast<const T*>(x.key) + n * x.k_row + j * x.K, x.K * sizeof(T));
    if (own_values) memcpy(values + slot * value_row, static_cast<const T*>(x.value) + n * x.v_row + j * x.V, x.V * sizeof(T));
    float *q = memory + thread_index() * floats, *scores = q + group * ldk, *out = scores + group * padded(visible);
    for (long g = 0; g < group; g++) {
      widen(q + g * ldk, static_cast<const T*>(x.query) + n * x.q_row + (j * group + g) * x.K, x.K);
      for (long d = 0; d < ldk; d += VW) store(q + g * ldk + d, x.scale * load(q + g * ldk + d));
    }
    memset(out, 0, group * ldv * sizeof(float));
    for (long t = 0; t < held; t++) {
      fetch(keys + (t + TOKENS_AHEAD) * key_row, x.K);
      for (long g = 0; g < group; g++) {
        vec total = {};
        along_row(x.K, [&](long d, auto part) { total += load(q + g * ldk + d) * load_part(keys + t * key_row, d, x.K, part); });
        scores[g * padded(visible) + t] = sum(total);
      }
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
    for (long t = 0; t < held; t++) {
      fetch(values + (t + TOKENS_AHEAD) * value_row, x.V);
      for (long g = 0; g < group; g++) {
        const float p = scores[g * padded(visible) + t];
        float* to = out + g * ldv;
        along_row(x.V, [&](long d, auto part) { store(to + d, load(to + d) + p * load_part(values + t * value_row, d, x.V, part)); });
      }
    }
    for (long g = 0; g < group; g++) narrow(static_cast<T*>(x.out) + (n * x.H + j * group + g) * x.V, out + g * ldv, x.V);
  });
}

}  // namespace

void attention_step(const AttentionStep& x) { x.dtype == DType::bf16 ? attention_step_of<bf16>(x) : attention_step_of<float>(x); }

namespace {

constexpr long TILE = 64;                              // queries and keys of a block
constexpr long LD_TILE = (TILE / LINE | 1) * LINE;
static_assert(TILE % TILE_ROWS == 0 && TILE % LINE == 0, "blocks are whole tiles and lines");

// Rows [first, first + count) of one head as floats times `factor`; rows up to TILE are zero.
void read_block(float* to, long ld, const Rows& from, long first, long count, long column, long size, float factor) {
  for (long i = 0; i < count; i++) {
    read(to + i * ld, from, first + i, column, size);
    if (factor != 1)
      for (long d = 0; d < size; d += VW) store(to + i * ld + d, factor * load(to + i * ld + d));
  }
  memset(to + count * ld, 0, (TILE - count) * ld * sizeof(float));
}

// Queries [q0, q0 + queries) against keys [k0, k0 + keys): what query i of the block sees of the keys' block.
struct Sight {
  long q0, k0, keys, window;
  long first(long i) const { return window ? most(0, q0 + i - window + 1 - k0) : 0; }
  long end(long i) const { return most(0, least(keys, q0 + i - k0 + 1)); }
};

void hide(float* row, const Sight& sight, long i) {
  const float nothing = -__builtin_inff();
  for (long t = 0; t < least(sight.first(i), TILE); t++) row[t] = nothing;
  for (long t = sight.end(i); t < TILE; t++) row[t] = nothing;
}

struct AttentionShape {
  long group, ldk, ldv;
  explicit AttentionShape(const Attention& x) : group(x.H / x.J), ldk(leading(x.K)), ldv(leading(x.V)) {}
};

Rows queries_of(const Attention& x) { return {const_cast<void*>(x.query), x.dtype, x.q_row}; }
Rows keys_of(const Attention& x) { return {const_cast<void*>(x.key), x.dtype, x.k_row}; }
Rows values_of(const Attention& x) { return {const_cast<void*>(x.value), x.dtype, x.v_row}; }

struct AttentionMemory {
  float *q, *k, *kt, *v, *o, *p;  // blocks

  AttentionMemory(Carver& carver, const Attention& x, const AttentionShape& s) {
    q = carver.take(TILE * s.ldk), k = carver.take(TILE * s.ldk), kt = carver.take(padded(x.K) * LD_TILE);
    v = carver.take(TILE * s.ldv), o = carver.take(TILE * s.ldv), p = carver.take(TILE * LD_TILE);
  }
};

// One block of queries of one head, over the keys from its own back to the first it sees. Keys [start, end); query q0 is
// at the place of key q0 + past.
void attend(const Attention& x, const AttentionShape& shape, long start, long end, long head, long q0, const AttentionMemory& m) {
  const long place = q0 + x.past, count = least(TILE, end - place), j = head / shape.group, ldk = shape.ldk, ldv = shape.ldv;
  const auto [q, k, kt, v, o, p] = m;
  float peak[TILE], size[TILE];
  read_block(q, ldk, queries_of(x), q0, count, head * x.K, x.K, x.scale);
  memset(o, 0, TILE * ldv * sizeof(float));
  for (long i = 0; i < TILE; i++) peak[i] = -__builtin_inff(), size[i] = 0;
  const long from = x.window ? most(start, place - x.window + 1) : start;
  for (long back = place; back + TILE > from && back > start - TILE; back -= TILE) {
    const long k0 = most(back, start);  // blocks go back from the queries' own, the last may be shorter
    const Sight sight = {place, k0, least(back + TILE, end) - k0, x.window};
    read_block(k, ldk, keys_of(x), k0, sight.keys, j * x.K, x.K, 1);
    read_block(v, ldv, values_of(x), k0, sight.keys, j * x.V, x.V, 1);
    transpose(kt, LD_TILE, k, ldk, TILE, x.K);
    product(TILE, TILE, x.K, rows_of(q, ldk), kt, LD_TILE, p, LD_TILE);
    for (long i = 0; i < TILE; i++) {
      float* row = p + i * LD_TILE;
      if (back == place || x.window || sight.keys < TILE) hide(row, sight, i);
      vec peaks = load(row);
      for (long t = VW; t < TILE; t += VW) peaks = larger(peaks, load(row + t));
      float top = peak[i];
      for (int lane = 0; lane < VW; lane++) top = peaks[lane] > top ? peaks[lane] : top;
      const float base = top == -__builtin_inff() ? 0 : top;  // a row that sees nothing here
      const float kept = __builtin_expf(peak[i] - base);
      vec total = {};
      for (long t = 0; t < TILE; t += VW) {
        vec e = exponential(load(row + t) - base);
        store(row + t, e);
        total += e;
      }
      size[i] = size[i] * kept + sum(total);
      peak[i] = top;
      if (kept != 1)
        for (long d = 0; d < padded(x.V); d += VW) store(o + i * ldv + d, kept * load(o + i * ldv + d));
    }
    if (all_finite(v, TILE, padded(x.V), ldv)) {
      product(TILE, padded(x.V), TILE, rows_of(p, LD_TILE), v, ldv, o, ldv, 1, back == place ? Filled::lower : Filled::full);
      continue;
    }
    for (long i = 0; i < TILE; i++)  // 0 times NaN is NaN: only what a query sees
      for (long t = sight.first(i); t < sight.end(i); t++)
        for (long d = 0; d < padded(x.V); d += VW)
          store(o + i * ldv + d, load(o + i * ldv + d) + p[i * LD_TILE + t] * load(v + t * ldv + d));
  }
  const Rows out = {x.out, x.dtype, x.H * x.V};
  for (long i = 0; i < count; i++) {
    for (long d = 0; d < padded(x.V); d += VW) store(o + i * ldv + d, (1.0f / size[i]) * load(o + i * ldv + d));
    write(out, q0 + i, head * x.V, o + i * ldv, x.V);
    if (x.weight) x.weight[(q0 + i) * x.H + head] = peak[i] + __builtin_logf(size[i]);
  }
}

// Blocks of queries, those with the most keys first.
struct QueryBlock {
  long segment, first;
};

long longest(const Attention& x) {
  long length = 0;
  for (long n = 0; n < x.N; n++) length = most(length, x.offsets[n + 1] - x.offsets[n]);
  return length;
}

long fill_query_blocks(const Attention& x, QueryBlock* blocks) {
  long count = 0;
  for (long back = (longest(x) - 1) / TILE * TILE; back >= 0; back -= TILE)
    for (long n = 0; n < x.N; n++) {
      if (x.offsets[n] + back >= x.offsets[n + 1]) continue;
      if (blocks) blocks[count] = {n, x.offsets[n] + back};
      count++;
    }
  return count;
}

}  // namespace

void attention_forward(const Attention& x) {
  const AttentionShape shape(x);
  Carver counter;
  AttentionMemory(counter, x, shape);
  const long floats = counter.used;
  const long count = fill_query_blocks(x, nullptr);
  float* memory = scratch_memory(size_t(x.threads) * floats + count * (sizeof(QueryBlock) / sizeof(float)));
  QueryBlock* blocks = reinterpret_cast<QueryBlock*>(memory + x.threads * floats);
  fill_query_blocks(x, blocks);
  parallel_uneven(count * x.H, x.threads, [&](long index) {
    const QueryBlock& block = blocks[index / x.H];
    Carver carver{memory + thread_index() * floats};
    const AttentionMemory m(carver, x, shape);
    attend(x, shape, x.offsets[block.segment], x.offsets[block.segment + 1] + x.past, index % x.H, block.first, m);
  });
}

namespace {

// Rounded as the compiler rounds a product and a sum of vectors here: once where there is such an instruction.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

struct AttentionBackMemory {
  float *k, *kt, *vt, *v, *q, *d_out, *p, *dp, *dk, *dv;  // blocks
  float *dq, *along;                                      // [group, length, K], [group, length]: rows of d_out times out

  AttentionBackMemory(Carver& carver, const Attention& x, const AttentionShape& s, long length) {
    k = carver.take(TILE * s.ldk), kt = carver.take(padded(x.K) * LD_TILE), vt = carver.take(padded(x.V) * LD_TILE);
    v = carver.take(TILE * s.ldv), q = carver.take(TILE * s.ldk), d_out = carver.take(TILE * s.ldv);
    p = carver.take(TILE * LD_TILE), dp = carver.take(TILE * LD_TILE);
    dk = carver.take(TILE * s.ldk), dv = carver.take(TILE * s.ldv);
    dq = carver.take(s.group * (length + TILE) * s.ldk), along = carver.take(s.group * (length + TILE));
  }
};

// One key head of one segment: with P the softmax, dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dK = dS^T Q, dQ = dS K.
void attend_back(const Attention& x, const AttentionShape& shape, long start, long end, long j, AttentionBackMemory& m) {
  const long ldk = shape.ldk, ldv = shape.ldv, length = end - start, stride = length + TILE;
  const Rows d_out = {const_cast<void*>(x.d_out), x.dtype, x.H * x.V}, out = {x.out, x.dtype, x.H * x.V};
  memset(m.dq, 0, shape.group * stride * ldk * sizeof(float));
  for (long g = 0; g < shape.group; g++)
    for (long i = 0; i < length; i++) {
      read(m.d_out, d_out, start + i, (j * shape.group + g) * x.V, x.V);
      read(m.v, out, start + i, (j * shape.group + g) * x.V, x.V);
      float along = 0;  // summed in the order of `product`, so that a token that sees itself alone gets exactly 0
      for (long d = 0; d < x.V; d++) along = multiply_add(m.d_out[d], m.v[d], along);
      m.along[g * stride + i] = along;
    }
  for (long k0 = start; k0 < end; k0 += TILE) {
    const long keys = least(TILE, end - k0);
    read_block(m.k, ldk, keys_of(x), k0, keys, j * x.K, x.K, 1);
    read_block(m.v, ldv, values_of(x), k0, keys, j * x.V, x.V, 1);
    transpose(m.kt, LD_TILE, m.k, ldk, TILE, x.K);
    transpose(m.vt, LD_TILE, m.v, ldv, TILE, x.V);
    memset(m.dk, 0, TILE * ldk * sizeof(float));
    memset(m.dv, 0, TILE * ldv * sizeof(float));
    for (long g = 0; g < shape.group; g++) {
      const long head = j * shape.group + g, stop = x.window ? least(end, k0 + keys - 1 + x.window) : end;
      for (long q0 = k0; q0 < stop; q0 += TILE) {
        const long count = least(TILE, end - q0);
        const Sight sight = {q0, k0, keys, x.window};
        const Filled lower = q0 == k0 ? Filled::lower : Filled::full, upper = q0 == k0 ? Filled::upper : Filled::full;
        read_block(m.q, ldk, queries_of(x), q0, count, head * x.K, x.K, x.scale);
        read_block(m.d_out, ldv, d_out, q0, count, head * x.V, x.V, 1);
        product(TILE, TILE, x.K, rows_of(m.q, ldk), m.kt, LD_TILE, m.p, LD_TILE);
        product(TILE, TILE, x.V, rows_of(m.d_out, ldv), m.vt, LD_TILE, m.dp, LD_TILE);
        for (long i = 0; i < TILE; i++) {
          float *p = m.p + i * LD_TILE, *dp = m.dp + i * LD_TILE;
          if (i >= count) {
            memset(p, 0, TILE * sizeof(float)), memset(dp, 0, TILE * sizeof(float));
            continue;
          }
          if (q0 == k0 || x.window || keys < TILE) hide(p, sight, i);
          const float weight = x.weight[(q0 + i) * x.H + head], along = m.along[g * stride + q0 - start + i];
          for (long t = 0; t < TILE; t += VW) {
            vec e = exponential(load(p + t) - weight);
            store(p + t, e);
            store(dp + t, e * (load(dp + t) - along));
          }
        }
        product(TILE, padded(x.V), TILE, columns_of(m.p, LD_TILE), m.d_out, ldv, m.dv, ldv, 1, upper);
        product(TILE, padded(x.K), TILE, columns_of(m.dp, LD_TILE), m.q, ldk, m.dk, ldk, 1, upper);
        product(TILE, padded(x.K), TILE, rows_of(m.dp, LD_TILE), m.k, ldk, m.dq + (g * stride + q0 - start) * ldk, ldk, 1, lower);
      }
    }
    const Rows d_key = {x.d_key, x.dtype, x.J * x.K}, d_value = {x.d_value, x.dtype, x.J * x.V};
    for (long i = 0; i < keys; i++) {
      write(d_key, k0 + i, j * x.K, m.dk + i * ldk, x.K);
      write(d_value, k0 + i, j * x.V, m.dv + i * ldv, x.V);
    }
  }
  const Rows d_query = {x.d_query, x.dtype, x.H * x.K};
  for (long g = 0; g < shape.group; g++)
    for (long i = 0; i < length; i++) {
      float* row = m.dq + (g * stride + i) * ldk;
      for (long d = 0; d < x.K; d += VW) store(row + d, x.scale * load(row + d));
      write(d_query, start + i, (j * shape.group + g) * x.K, row, x.K);
    }
}

}  // namespace

void attention_backward(const Attention& x) {
  const AttentionShape shape(x);
  const long length = longest(x);
  Carver counter;
  AttentionBackMemory(counter, x, shape, length);
  const long floats = counter.used;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  parallel_uneven(x.N * x.J, x.threads, [&](long index) {
    Carver carver{memory + thread_index() * floats};
    AttentionBackMemory m(carver, x, shape, length);
    const long n = index / x.J;
    attend_back(x, shape, x.offsets[n], x.offsets[n + 1], index % x.J, m);
  });
}

}  // namespace INTERLACE_ISA
