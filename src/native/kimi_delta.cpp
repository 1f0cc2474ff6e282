// Kimi Delta Attention: forward and one step. Derivation: src/interlace/ops/kimi_delta/README.md; chunks, items and names
// are those of gated_delta.cpp, but log_decay is [total, G, K]: a decay for each channel.
//
// The decay from token j to token i is a product of numbers in [0, 1], channel by channel. It is never formed as a
// quotient: queries and keys of a block of rows are decayed from the block's start, the keys before it up to that start,
// and inside a block a key is decayed one token at a time.
namespace INTERLACE_ISA {
namespace {

constexpr long BLOCK_ROWS = TILE_ROWS;

struct KimiMemory {
  Chunk chunk;
  float *a;        // [rows, K]: exp(log_decay)
  float *into;     // [2 rows, K]: keys and queries, decayed from the chunk's start
  float *out_of;   // [rows, K]: keys, decayed to the chunk's end
  float *left;     // [2 BLOCK_ROWS, K]: keys and queries of a block, decayed from its start
  float *right;    // [BLOCK_ROWS, K]: keys of a block, decayed to its end
  float *earlier;  // [K, rows]: keys before a block, decayed to its start, transposed
  float *running;  // [K]
  float *S, *read, *m;

  KimiMemory(Carver& carver, const Plan& plan, long K) : chunk(carver, plan, K) {
    a = carver.take(CHUNK * plan.ldk), into = carver.take(2 * CHUNK * plan.ldk), out_of = carver.take(CHUNK * plan.ldk);
    left = carver.take(2 * BLOCK_ROWS * plan.ldk), right = carver.take(BLOCK_ROWS * plan.ldk);
    earlier = carver.take(K * LD_CHUNK), running = carver.take(plan.ldk);
    S = carver.take(K * plan.ldv), read = carver.take(2 * CHUNK * plan.ldv), m = carver.take(CHUNK * LD_CHUNK);
  }
};

inline const float* decays_of(const GatedDeltaArguments& x, const Item& item, long t) {
  return x.log_decay + (t * x.G + item.head) * x.K;
}

void read_decays(KimiMemory& m, const GatedDeltaArguments& x, const Plan& plan, const Item& item, long t) {
  Chunk& c = m.chunk;
  for (long i = 0; i < c.rows; i++) {
    float* row = m.a + i * plan.ldk;
    c.beta[i] = i < c.count ? x.beta[(t + i) * x.G + item.head] : 0.0f;
    for (long p = 0; p < padded(x.K); p += VW)
      store(row + p, i < c.count ? exponential(load_up_to(decays_of(x, item, t + i) + p, x.K - p)) : splat(1.0f));
  }
}

// Products inside one block of rows: key j is decayed one token at a time, and met by the keys and queries it reaches.
void block_products(KimiMemory& m, const Plan& plan, long K, long s) {
  Chunk& c = m.chunk;
  const long wide = padded(K);
  float* key = m.running;
  for (long j = s; j < s + BLOCK_ROWS; j++) {
    memcpy(key, c.kq + j * plan.ldk, wide * sizeof(float));
    c.kk[(c.rows + j) * LD_CHUNK + j] = dot(c.kq + (c.rows + j) * plan.ldk, key, wide);
    for (long i = j + 1; i < s + BLOCK_ROWS; i++) {
      const float *k = c.kq + i * plan.ldk, *q = c.kq + (c.rows + i) * plan.ldk, *a = m.a + i * plan.ldk;
      vec with_k = {}, with_q = {};
      for (long p = 0; p < wide; p += VW) {
        vec r = load(a + p) * load(key + p);
        store(key + p, r);
        with_k += load(k + p) * r;
        with_q += load(q + p) * r;
      }
      c.kk[i * LD_CHUNK + j] = sum(with_k);
      c.kk[(c.rows + i) * LD_CHUNK + j] = sum(with_q);
    }
  }
}

// c.kk: the decayed products of keys, and of queries with keys, zero above the diagonal.
void decayed_products(KimiMemory& m, const Plan& plan, long K) {
  Chunk& c = m.chunk;
  const long wide = padded(K), ld = plan.ldk;
  memset(c.kk, 0, 2 * c.rows * LD_CHUNK * sizeof(float));
  memset(m.earlier, 0, K * LD_CHUNK * sizeof(float));
  for (long s = 0; s < c.rows; s += BLOCK_ROWS) {
    for (long p = 0; p < wide; p += VW) {
      vec decay = splat(1.0f);
      for (long i = 0; i < BLOCK_ROWS; i++) {
        decay *= load(m.a + (s + i) * ld + p);
        store(m.left + i * ld + p, decay * load(c.kq + (s + i) * ld + p));
        store(m.left + (BLOCK_ROWS + i) * ld + p, decay * load(c.kq + (c.rows + s + i) * ld + p));
      }
      store(m.running + p, decay);
      vec rest = splat(1.0f);
      for (long i = BLOCK_ROWS - 1; i >= 0; i--) {
        store(m.right + i * ld + p, rest * load(c.kq + (s + i) * ld + p));
        rest *= load(m.a + (s + i) * ld + p);
      }
    }
    if (s > 0) {
      product(BLOCK_ROWS, s, K, rows_of(m.left, ld), m.earlier, LD_CHUNK, c.kk + s * LD_CHUNK, LD_CHUNK);
      product(BLOCK_ROWS, s, K, rows_of(m.left + BLOCK_ROWS * ld, ld), m.earlier, LD_CHUNK, c.kk + (c.rows + s) * LD_CHUNK, LD_CHUNK);
    }
    for (long p = 0; p < K; p++)
      for (long j = 0; j < s; j += VW) store(m.earlier + p * LD_CHUNK + j, m.running[p] * load(m.earlier + p * LD_CHUNK + j));
    transpose(m.earlier + s, LD_CHUNK, m.right, ld, BLOCK_ROWS, K);
    block_products(m, plan, K, s);
  }
}

// Keys and queries decayed from the chunk's start, keys decayed to its end; `running` is the decay across it.
void decay_from_and_to(KimiMemory& m, const Plan& plan, long K) {
  const Chunk& c = m.chunk;
  const long ld = plan.ldk;
  for (long p = 0; p < padded(K); p += VW) {
    vec decay = splat(1.0f), rest = splat(1.0f);
    for (long i = 0; i < c.rows; i++) {
      decay *= load(m.a + i * ld + p);
      store(m.into + i * ld + p, decay * load(c.kq + i * ld + p));
      store(m.into + (c.rows + i) * ld + p, decay * load(c.kq + (c.rows + i) * ld + p));
    }
    store(m.running + p, decay);
    for (long i = c.rows - 1; i >= 0; i--) {
      store(m.out_of + i * ld + p, rest * load(c.kq + i * ld + p));
      rest *= load(m.a + i * ld + p);
    }
  }
}

// Token by token, for chunks that hold a NaN or an infinity, which must not reach back. Overwrites c.v.
void kimi_by_tokens(KimiMemory& m, float* out, const GatedDeltaArguments& x, const Plan& plan, const Item& item) {
  Chunk& c = m.chunk;
  const long ld = plan.ldv;
  for (long i = 0; i < c.count; i++) {
    const float *k = c.kq + i * plan.ldk, *q = c.kq + (c.rows + i) * plan.ldk, *a = m.a + i * plan.ldk;
    for (long j = 0; j < item.columns; j += VW) {
      vec read = {}, answer = {};
      for (long p = 0; p < x.K; p++) {
        vec s = a[p] * load(m.S + p * ld + j);
        store(m.S + p * ld + j, s);
        read += k[p] * s;
      }
      vec written = c.beta[i] * (load(c.v + i * ld + j) - read);
      for (long p = 0; p < x.K; p++) {
        vec s = load(m.S + p * ld + j) + k[p] * written;
        store(m.S + p * ld + j, s);
        answer += q[p] * s;
      }
      store(out + i * ld + j, x.scale * answer);
    }
  }
}

void kimi_item(const GatedDeltaForward& x, const Plan& plan, const Item& item, KimiMemory& m) {
  Chunk& c = m.chunk;
  const long ld = plan.ldv, width = padded(item.columns);
  memset(m.S, 0, x.K * ld * sizeof(float));
  if (x.state) copy_state(m.S, ld, state_of(x.state, x, item, item.segment), x.V, x.K, item.columns);
  const Rows out = {x.out, x.v_dtype, x.G * x.V};
  for (long t = item.first; t < item.end; t += CHUNK) {
    c.count = least(CHUNK, item.end - t);
    c.rows = (c.count + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    read_vectors(c, x, plan, item, t);
    read_values(c, x, plan, item, t);
    read_decays(m, x, plan, item, t);
    prefetch_chunk(x, item, t + CHUNK, true);
    decayed_products(m, plan, x.K);
    decay_from_and_to(m, plan, x.K);
    product(2 * c.rows, width, x.K, rows_of(m.into, plan.ldk), m.S, ld, m.read, ld);
    float* answers = m.read + c.rows * ld;
    for (long i = 0; i < c.rows; i++)
      for (long j = 0; j < width; j += VW) {
        store(c.v + i * ld + j, c.beta[i] * (load(c.v + i * ld + j) - load(m.read + i * ld + j)));
        store(answers + i * ld + j, x.scale * load(answers + i * ld + j));
      }
    scale_rows(m.m, c.kk, c.beta, c.rows, padded(c.rows), LD_CHUNK);
    solve(c.rows, width, rows_of(m.m, LD_CHUNK), c.v, ld, false);
    for (long i = 0; i < c.rows; i++)
      for (long j = 0; j < padded(c.rows); j += VW)
        store(m.m + i * LD_CHUNK + j, x.scale * load(c.kk + (c.rows + i) * LD_CHUNK + j));
    product(c.rows, width, c.rows, rows_of(m.m, LD_CHUNK), c.v, ld, answers, ld, 1, Filled::lower);
    if (all_finite(c.v, c.rows, width, ld) && all_finite(answers, c.rows, width, ld)) {
      for (long p = 0; p < x.K; p++)
        for (long j = 0; j < width; j += VW) store(m.S + p * ld + j, m.running[p] * load(m.S + p * ld + j));
      product(x.K, width, c.rows, columns_of(m.out_of, plan.ldk), c.v, ld, m.S, ld, 1);
    } else {
      read_values(c, x, plan, item, t);
      kimi_by_tokens(m, answers, x, plan, item);
    }
    for (long i = 0; i < c.count; i++) write(out, t + i, item.head * x.V + item.column, answers + i * ld, item.columns);
  }
  float* to = const_cast<float*>(state_of(x.final_state, x, item, item.segment));
  copy_state(to, x.V, m.S, ld, x.K, item.columns);
}

}  // namespace

void kimi_delta_forward(const GatedDeltaForward& x) {
  const Plan plan(x);
  Carver count;
  KimiMemory(count, plan, x.K);
  float* memory = scratch_memory(size_t(x.threads) * count.used);
  parallel(plan.items(x), x.threads, [&](long index) {
    Carver carver{memory + thread_index() * count.used};
    KimiMemory m(carver, plan, x.K);
    kimi_item(x, plan, Item(x, plan, index), m);
  });
}

void kimi_delta_step(const GatedDeltaStep& x) {
  const long ldk = padded(x.K), ldv = padded(x.V), group = x.G / x.H, floats = 3 * ldk + 2 * ldv;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  const Rows keys = keys_of(x), queries = queries_of(x), values = values_of(x), out = {x.out, x.v_dtype, x.G * x.V};
  parallel(x.N * x.G, x.threads, [&](long index) {
    const long n = index / x.G, head = index % x.G;
    float *k = memory + thread_index() * floats, *q = k + ldk, *a = q + ldk, *v = a + ldk, *answer = v + ldv;
    read(k, keys, n, head / group * x.K, x.K);
    read(q, queries, n, head / group * x.K, x.K);
    read(v, values, n, head * x.V, x.V);
    if (x.normalise) unit_length(k, ldk), unit_length(q, ldk);
    for (long p = 0; p < ldk; p += VW) store(a + p, exponential(load_up_to(x.log_decay + index * x.K + p, x.K - p)));
    const float beta = x.beta[index], overlap = dot(k, q, ldk);
    float* S = x.memory + index * x.K * x.V;
    for (long j = 0; j < x.V; j += VW) {
      const long left = x.V - j;
      vec with_k = {}, with_q = {};
      for (long p = 0; p < x.K; p++) {
        vec s = a[p] * load_up_to(S + p * x.V + j, left);
        with_k += k[p] * s;
        with_q += q[p] * s;
      }
      const vec written = beta * (load(v + j) - with_k);
      store(answer + j, x.scale * (with_q + overlap * written));
      for (long p = 0; p < x.K; p++)
        store_up_to(S + p * x.V + j, a[p] * load_up_to(S + p * x.V + j, left) + k[p] * written, left);
    }
    write(out, n, head * x.V, answer, x.V);
  });
}

}  // namespace INTERLACE_ISA
