// The gated delta rule: forward, backward and one step. Derivation and names: src/interlace/ops/gated_delta/README.md.
//
// An item of work is one segment, one value head and one block of value columns: columns of the state do not see each
// other. Chunks are cut from each segment on its own, so nothing of one segment is ever read for another.
namespace INTERLACE_ISA {
namespace {

struct ForwardMemory {
  Chunk chunk;
  float *S, *read, *a;

  ForwardMemory(Carver& carver, const Plan& plan, long K) : chunk(carver, plan, K) {
    S = carver.take(K * plan.ldv), read = carver.take(2 * CHUNK * plan.ldv), a = carver.take(CHUNK * LD_CHUNK);
  }
};

void forward_item(const GatedDeltaForward& x, const Plan& plan, const Item& item, ForwardMemory& m) {
  Chunk& c = m.chunk;
  const long ld = plan.ldv, width = padded(item.columns);
  memset(m.S, 0, x.K * ld * sizeof(float));
  if (x.state) copy_state(m.S, ld, state_of(x.state, x, item, item.segment), x.V, x.K, item.columns);
  Rows out = {x.out, x.v_dtype, x.G * x.V};
  for (long t = item.first; t < item.end; t += CHUNK) {
    if (x.snapshots && t > item.first && (t - item.first) % SNAPSHOT_TOKENS == 0) {
      float* to = const_cast<float*>(state_of(x.snapshots, x, item, t / SNAPSHOT_TOKENS - 1));
      copy_state(to, x.V, m.S, ld, x.K, item.columns);
    }
    begin(c, x, plan, item, t, true);
    read_values(c, x, plan, item, t);
    prefetch_chunk(x, item, t + CHUNK, true);
    product(2 * c.rows, width, x.K, rows_of(c.kq, plan.ldk), m.S, ld, m.read, ld);
    float* answers = m.read + c.rows * ld;
    for (long i = 0; i < c.rows; i++) {
      float write = c.beta[i], into = c.into[i], in = x.scale * c.into[i];
      for (long j = 0; j < width; j += VW) {
        store(c.v + i * ld + j, write * (load(c.v + i * ld + j) - into * load(m.read + i * ld + j)));
        store(answers + i * ld + j, in * load(answers + i * ld + j));
      }
    }
    form_A(c, m.a);
    solve(c.rows, width, rows_of(m.a, LD_CHUNK), c.v, ld, false);
    form_M(c, m.a, x.scale);
    product(c.rows, width, c.rows, rows_of(m.a, LD_CHUNK), c.v, ld, answers, ld, 1, Filled::lower);
    if (all_finite(c.v, c.rows, width, ld) && all_finite(answers, c.rows, width, ld)) {
      scale_rows(c.kq, c.kq, c.out_of, c.rows, padded(x.K), plan.ldk);
      product(x.K, width, c.rows, columns_of(c.kq, plan.ldk), c.v, ld, m.S, ld, c.across);
    } else {
      read_values(c, x, plan, item, t);
      by_tokens(c, m.S, answers, x, plan, item, t);
    }
    for (long i = 0; i < c.count; i++) write(out, t + i, item.head * x.V + item.column, answers + i * ld, item.columns);
  }
  float* to = const_cast<float*>(state_of(x.final_state, x, item, item.segment));
  copy_state(to, x.V, m.S, ld, x.K, item.columns);
}

// What the replay of a stretch between two snapshots leaves for the way back.
struct Stretch {
  float* entry[CHUNKS];    // [K, V]: the state a chunk starts from
  float* written[CHUNKS];  // [rows, V]: W
  float* error[CHUNKS];    // [rows, V]: X, with W = (I + A)^-1 beta X
};

struct BackwardMemory {
  Chunk chunk;
  Stretch stretch;
  float *a, *m, *dd;       // [rows, rows]
  float *dS, *transposed;  // [K, V]; [V, K] or [V, rows]
  float *d_rows;           // [2 rows, V]: dR, then dO
  float *zs;               // [2 rows, V]
  float *d_kq, *yk;        // [2 rows, K], [rows, K]
  float *d_a;              // [2 rows, rows]: -dA, then dM

  BackwardMemory(Carver& carver, const Plan& plan, long K, long V) : chunk(carver, plan, K) {
    for (long i = 0; i < CHUNKS; i++) {
      stretch.entry[i] = carver.take(K * plan.ldv);
      stretch.written[i] = carver.take(CHUNK * plan.ldv), stretch.error[i] = carver.take(CHUNK * plan.ldv);
    }
    a = carver.take(CHUNK * LD_CHUNK), m = carver.take(CHUNK * LD_CHUNK), dd = carver.take(CHUNK * LD_CHUNK);
    dS = carver.take(K * plan.ldv), transposed = carver.take(padded(V) * most(plan.ldk, LD_CHUNK));
    d_rows = carver.take(2 * CHUNK * plan.ldv), zs = carver.take(2 * CHUNK * plan.ldv);
    d_kq = carver.take(2 * CHUNK * plan.ldk), yk = carver.take(CHUNK * plan.ldk);
    d_a = carver.take(2 * CHUNK * LD_CHUNK);
  }
};

// Where the gradients of one item go: straight to the result, or to a part that is summed later.
struct Sinks {
  Rows d_q, d_k;
  float *d_g, *d_beta;  // [total, G]
};

void replay(const GatedDeltaBackward& x, const Plan& plan, const Item& item, BackwardMemory& m, long first, long end) {
  Chunk& c = m.chunk;
  const long ld = plan.ldv, width = padded(item.columns);
  long index = 0;
  for (long t = first; t < end; t += CHUNK, index++) {
    float *S = m.stretch.entry[index], *W = m.stretch.written[index], *X = m.stretch.error[index];
    begin(c, x, plan, item, t, false);
    read_values(c, x, plan, item, t);
    prefetch_chunk(x, item, t + CHUNK, true);
    product(c.rows, width, x.K, rows_of(c.kq, plan.ldk), S, ld, m.zs, ld);
    for (long i = 0; i < c.rows; i++)
      for (long j = 0; j < width; j += VW) {
        vec error = load(c.v + i * ld + j) - c.into[i] * load(m.zs + i * ld + j);
        store(X + i * ld + j, error);
        store(W + i * ld + j, c.beta[i] * error);
      }
    form_A(c, m.a);
    solve(c.rows, width, rows_of(m.a, LD_CHUNK), W, ld, false);
    if (t + CHUNK >= end) break;
    float* next = m.stretch.entry[index + 1];
    scale_rows(c.kq, c.kq, c.out_of, c.rows, padded(x.K), plan.ldk);
    memcpy(next, S, x.K * ld * sizeof(float));
    product(x.K, width, c.rows, columns_of(c.kq, plan.ldk), W, ld, next, ld, c.across);
  }
}

// One chunk of the way back: m.dS is the gradient of its exit state before, of its entry state after.
void chunk_back(const GatedDeltaBackward& x, const Plan& plan, const Item& item, BackwardMemory& m, const Sinks& sinks,
                long index, long t) {
  Chunk& c = m.chunk;
  const long ld = plan.ldv, ldk = plan.ldk, width = padded(item.columns), wide = padded(x.K);
  const float *S = m.stretch.entry[index], *W = m.stretch.written[index], *X = m.stretch.error[index];
  begin(c, x, plan, item, t, true);
  const long n = c.rows;
  float *dR = m.d_rows, *dO = m.d_rows + n * ld;
  const Rows d_out = {const_cast<void*>(x.d_out), x.v_dtype, x.G * x.V};
  read_head(dO, c, d_out, plan, item, t);
  if (index > 0) {
    prefetch_chunk(x, item, t - CHUNK, false);
    for (long i = 0; i < CHUNK; i++) prefetch(d_out, t - CHUNK + i, item.head * x.V + item.column, item.columns);
  }

  form_A(c, m.a);
  form_M(c, m.m, x.scale);
  scale_rows(m.yk, c.kq, c.out_of, n, wide, ldk);                                           // K_out
  product(n, width, x.K, rows_of(m.yk, ldk), m.dS, ld, dR, ld);
  product(n, width, n, columns_of(m.m, LD_CHUNK), dO, ld, dR, ld, 1, Filled::upper);           // dW
  solve(n, width, rows_of(m.a, LD_CHUNK), dR, ld, true);

  transpose(m.transposed, LD_CHUNK, W, ld, n, item.columns);
  triangle(m.d_a, n, 2, item.columns, m.d_rows, ld, m.transposed);  // -dA; dM
  float* dM = m.d_a + n * LD_CHUNK;

  for (long i = 0; i < n; i++) {                                                                // -beta dR; scale dO
    float write = -c.beta[i];
    for (long j = 0; j < width; j += VW) {
      store(m.zs + i * ld + j, write * load(dR + i * ld + j));
      store(m.zs + (n + i) * ld + j, x.scale * load(dO + i * ld + j));
    }
  }
  transpose(m.transposed, ldk, S, ld, x.K, item.columns);
  product(2 * n, wide, item.columns, rows_of(m.zs, ld), m.transposed, ldk, m.d_kq, ldk);
  transpose(m.transposed, ldk, m.dS, ld, x.K, item.columns);
  product(n, wide, item.columns, rows_of(W, ld), m.transposed, ldk, m.yk, ldk);

  vec across = {};
  for (long k = 0; k < x.K; k++)
    for (long j = 0; j < width; j += VW) across += load(S + k * ld + j) * load(m.dS + k * ld + j);

  // Gradients of the gates. E_ij = dA_ij A_ij + dM_ij M_ij reaches G_i positively and G_j negatively.
  double d_G[CHUNK];
  float column_sums[CHUNK + VW] = {};
  double to_last = double(c.across) * sum(across);
  for (long i = 0; i < n; i++) {
    const float *k = c.kq + i * ldk, *q = c.kq + (n + i) * ldk;
    vec e_row = {}, b_row = {};
    for (long j = 0; j < row_end(c, i); j += VW) {
      long at = i * LD_CHUNK + j;
      vec dA = -load(m.d_a + at), d_M = load(dM + at), a = load(m.a + at), mm = load(m.m + at), D = load(c.decay + at);
      vec e = dA * a + d_M * mm;
      e_row += e;
      store(column_sums + j, load(column_sums + j) + e);
      vec below = dA * D * load(c.kk + at);  // the diagonal is taken out below
      b_row += below;
      store(m.dd + at, c.beta[i] * D * dA);  // d(k_i . k_j)
      store(dM + at, x.scale * D * d_M);     // d(q_i . k_j)
    }
    m.dd[i * LD_CHUNK + i] = 0;
    float diagonal = m.d_a[i * LD_CHUNK + i] * c.kk[i * LD_CHUNK + i];
    float d_into = dot(k, m.d_kq + i * ldk, wide) + dot(q, m.d_kq + (n + i) * ldk, wide);
    float d_out_of = c.out_of[i] * dot(k, m.yk + i * ldk, wide);
    to_last += d_out_of;
    d_G[i] = double(sum(e_row)) + double(c.into[i]) * d_into - d_out_of;
    float d_beta = dot(dR + i * ld, X + i * ld, width) + sum(b_row) + diagonal;
    if (i < c.count) sinks.d_beta[(t + i) * x.G + item.head] = d_beta;
  }
  double later = to_last;
  for (long i = n - 1; i >= 0; i--) {
    later += d_G[i] - column_sums[i];
    if (i < c.count) sinks.d_g[(t + i) * x.G + item.head] = float(later);
  }

  // Gradients of queries, keys and values.
  for (long i = 0; i < n; i++) {
    float in = c.into[i], out = c.out_of[i];
    float *dk = m.d_kq + i * ldk, *dq = m.d_kq + (n + i) * ldk, *y = m.yk + i * ldk;
    for (long j = 0; j < wide; j += VW) {
      store(dk + j, in * load(dk + j) + out * load(y + j));
      store(dq + j, in * load(dq + j));
    }
  }
  product(n, wide, n, rows_of(m.dd, LD_CHUNK), c.kq, ldk, m.d_kq, ldk, 1, Filled::lower);
  product(n, wide, n, columns_of(m.dd, LD_CHUNK), c.kq, ldk, m.d_kq, ldk, 1, Filled::upper);
  product(n, wide, n, columns_of(dM, LD_CHUNK), c.kq + n * ldk, ldk, m.d_kq, ldk, 1, Filled::upper);
  product(n, wide, n, rows_of(dM, LD_CHUNK), c.kq, ldk, m.d_kq + n * ldk, ldk, 1, Filled::lower);
  Rows d_value = {x.d_value, x.v_dtype, x.G * x.V};
  for (long i = 0; i < c.count; i++) {
    for (long which = 0; which < 2; which++) {
      float *d = m.d_kq + (which * n + i) * ldk, *unit = c.kq + (which * n + i) * ldk;
      if (x.normalise) {
        float along = dot(d, unit, wide), size = c.size[which * n + i];
        for (long j = 0; j < wide; j += VW) store(d + j, size * (load(d + j) - along * load(unit + j)));
      }
      write(which ? sinks.d_q : sinks.d_k, t + i, item.key_head * x.K, d, x.K);
    }
    float* dv = dR + i * ld;
    for (long j = 0; j < width; j += VW) store(dv + j, c.beta[i] * load(dv + j));
    write(d_value, t + i, item.head * x.V + item.column, dv, item.columns);
  }

  // dS = across dS' + [into K; into Q]^T [-beta dR; scale dO].
  scale_rows(c.kq, c.kq, c.into, n, wide, ldk);
  scale_rows(c.kq + n * ldk, c.kq + n * ldk, c.into, n, wide, ldk);
  product(x.K, width, 2 * n, columns_of(c.kq, ldk), m.zs, ld, m.dS, ld, c.across);
}

void backward_item(const GatedDeltaBackward& x, const Plan& plan, const Item& item, BackwardMemory& m, const Sinks& sinks) {
  const long ld = plan.ldv;
  memset(m.dS, 0, x.K * ld * sizeof(float));
  if (x.d_final) copy_state(m.dS, ld, state_of(x.d_final, x, item, item.segment), x.V, x.K, item.columns);
  long last = item.first + (item.end - item.first - 1) / SNAPSHOT_TOKENS * SNAPSHOT_TOKENS;
  for (long first = last; first >= item.first; first -= SNAPSHOT_TOKENS) {
    float* S = m.stretch.entry[0];
    memset(S, 0, x.K * ld * sizeof(float));
    if (first > item.first)
      copy_state(S, ld, state_of(x.snapshots, x, item, first / SNAPSHOT_TOKENS - 1), x.V, x.K, item.columns);
    else if (x.state)
      copy_state(S, ld, state_of(x.state, x, item, item.segment), x.V, x.K, item.columns);
    long end = least(first + SNAPSHOT_TOKENS, item.end);
    replay(x, plan, item, m, first, end);
    for (long index = (end - first + CHUNK - 1) / CHUNK - 1; index >= 0; index--)
      chunk_back(x, plan, item, m, sinks, index, first + index * CHUNK);
  }
  if (x.d_state) {
    float* to = const_cast<float*>(state_of(x.d_state, x, item, item.segment));
    copy_state(to, x.V, m.dS, ld, x.K, item.columns);
  }
}

// to [total, heads x size] = the sum of `parts` per head of `from`: part p of head h is column block h x parts + p.
void sum_parts(const Rows& to, const float* from, long parts, long heads, long size, long t) {
  for (long h = 0; h < heads; h++) {
    const float* first = from + (t * heads + h) * parts * size;
    float total[64];
    for (long j = 0; j < size; j += 64) {
      long n = least(64, size - j);
      for (long i = 0; i < n; i++) total[i] = 0;
      for (long p = 0; p < parts; p++)
        for (long i = 0; i < n; i++) total[i] += first[p * size + j + i];
      write(to, t, h * size + j, total, n);
    }
  }
}

}  // namespace

void gated_delta_forward(const GatedDeltaForward& x) {
  Plan plan(x);
  Carver counter;
  ForwardMemory(counter, plan, x.K);
  const long floats = counter.used;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  parallel_uneven(plan.items(x), x.threads, [&](long index) {
    Carver carver{memory + thread_index() * floats};
    ForwardMemory m(carver, plan, x.K);
    forward_item(x, plan, Item(x, plan, index), m);
  });
}

void gated_delta_backward(const GatedDeltaBackward& x) {
  Plan plan(x);
  Carver counter;
  BackwardMemory(counter, plan, x.K, plan.width);
  const long floats = counter.used;
  const long total = x.offsets[x.N], parts = plan.group * plan.blocks;
  // Heads of a group and blocks of columns share a key: each leaves its part of the gradients, summed afterwards.
  const long vectors = parts > 1 ? total * x.G * plan.blocks * x.K : 0, gates = plan.blocks > 1 ? total * x.G * plan.blocks : 0;
  float* memory = scratch_memory(size_t(x.threads) * floats + 2 * size_t(vectors) + 2 * size_t(gates));
  float* shared = memory + x.threads * floats;
  parallel_uneven(plan.items(x), x.threads, [&](long index) {
    Carver carver{memory + thread_index() * floats};
    BackwardMemory m(carver, plan, x.K, plan.width);
    Item item(x, plan, index);
    Sinks sinks = {{x.d_query, x.qk_dtype, x.H * x.K}, {x.d_key, x.qk_dtype, x.H * x.K}, x.d_log_decay, x.d_beta};
    if (parts > 1) {
      long part = (item.head % plan.group) * plan.blocks + item.block, row = x.H * parts * x.K;
      long offset = (item.key_head * (parts - 1) + part) * x.K;  // beside the offset of the key head itself
      sinks.d_q = {shared + offset, DType::f32, row};
      sinks.d_k = {shared + vectors + offset, DType::f32, row};
    }
    if (gates) {
      sinks.d_g = shared + 2 * vectors + item.block * total * x.G;
      sinks.d_beta = shared + 2 * vectors + gates + item.block * total * x.G;
    }
    backward_item(x, plan, item, m, sinks);
  });
  if (parts == 1) return;
  parallel((total + 63) / 64, x.threads, [&](long block) {
    for (long t = block * 64; t < least(total, block * 64 + 64); t++) {
      sum_parts({x.d_query, x.qk_dtype, x.H * x.K}, shared, parts, x.H, x.K, t);
      sum_parts({x.d_key, x.qk_dtype, x.H * x.K}, shared + vectors, parts, x.H, x.K, t);
      if (!gates) continue;
      const float *g = shared + 2 * vectors, *b = g + gates;
      for (long h = t * x.G; h < (t + 1) * x.G; h++) {
        float dg = 0, db = 0;
        for (long p = 0; p < plan.blocks; p++) dg += g[p * total * x.G + h], db += b[p * total * x.G + h];
        x.d_log_decay[h] = dg, x.d_beta[h] = db;
      }
    }
  });
}

namespace {

// A panel of columns of one head's state: read once for k and q, then rewritten while it is in the first cache.
template <int N>
void step_panel(float* S, long ld, const float* k, const float* q, long K, float decay, float beta, float overlap,
                float scale, const float* value, float* out, long columns) {
  vec with_k[N] = {}, with_q[N] = {};
  for (long p = 0; p < K; p++)
    for (int n = 0; n < N; n++) {
      vec s = load_up_to(S + p * ld + n * VW, columns - n * VW);
      with_k[n] += k[p] * s;
      with_q[n] += q[p] * s;
    }
  for (int n = 0; n < N; n++) {
    vec written = beta * (load(value + n * VW) - decay * with_k[n]);
    store(out + n * VW, scale * (decay * with_q[n] + overlap * written));
    with_k[n] = written;
  }
  for (long p = 0; p < K; p++)
    for (int n = 0; n < N; n++) {
      float* s = S + p * ld + n * VW;
      store_up_to(s, decay * load_up_to(s, columns - n * VW) + k[p] * with_k[n], columns - n * VW);
    }
}

constexpr int STEP_VECTORS = 64 / VW < 4 ? 64 / VW : 4;
constexpr long PANEL = STEP_VECTORS * VW;

// One token of one head, whose q and k (padded) and v are floats. S [K, V] is changed in place, `out` [V] filled.
void step_head(float* S, const float* k, const float* q, const float* v, float* out, long K, long V, float log_decay,
               float beta, float scale) {
  const float decay = __builtin_expf(log_decay), overlap = dot(k, q, padded(K));
  long column = 0;
  for (; column + PANEL <= V; column += PANEL)
    step_panel<STEP_VECTORS>(S + column, V, k, q, K, decay, beta, overlap, scale, v + column, out + column, PANEL);
  for (; column < V; column += VW)
    step_panel<1>(S + column, V, k, q, K, decay, beta, overlap, scale, v + column, out + column, V - column);
}

}  // namespace

void gated_delta_step(const GatedDeltaStep& x) {
  const long ldk = padded(x.K), ldv = padded(x.V), group = x.G / x.H, floats = 2 * ldk + 2 * ldv;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  const Rows keys = keys_of(x), queries = queries_of(x), values = values_of(x), out = {x.out, x.v_dtype, x.G * x.V};
  parallel(x.N * x.G, x.threads, [&](long index) {
    const long n = index / x.G, head = index % x.G;
    float *k = memory + thread_index() * floats, *q = k + ldk, *v = q + ldk, *answer = v + ldv;
    read(k, keys, n, head / group * x.K, x.K);
    read(q, queries, n, head / group * x.K, x.K);
    read(v, values, n, head * x.V, x.V);
    if (x.normalise) unit_length(k, ldk), unit_length(q, ldk);
    step_head(x.memory + index * x.K * x.V, k, q, v, answer, x.K, x.V, x.log_decay[n * x.G + head], x.beta[n * x.G + head], x.scale);
    write(out, n, head * x.V, answer, x.V);
  });
}

}  // namespace INTERLACE_ISA
