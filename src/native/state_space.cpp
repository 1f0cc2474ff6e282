// Mamba-2's state space: forward and one step. Derivation: src/interlace/ops/state_space/README.md; the chunks, and the
// names, are those of gated_delta.cpp, with the step in the place of beta.
//
// An item of work is one segment, one block of value columns and a few value heads of one group, which share their
// queries and keys and the products of these.
namespace INTERLACE_ISA {
namespace {

constexpr long MOST_HEADS = 8;

// How many value heads of a group are worked on together; as many as leave enough items to share out.
long heads_together(const GatedDeltaArguments& x) {
  return most(1, least(least(x.G / x.H, MOST_HEADS), x.N * x.G / FEW_ITEMS));
}

struct StateSpaceMemory {
  Chunk chunk;
  float *S, *answers, *out_of_rows, *m;

  StateSpaceMemory(Carver& carver, const Plan& plan, long K, long heads) : chunk(carver, plan, K) {
    S = carver.take(heads * K * plan.ldv);
    answers = carver.take(CHUNK * plan.ldv), out_of_rows = carver.take(CHUNK * plan.ldv), m = carver.take(CHUNK * LD_CHUNK);
  }
};

// Token by token, for chunks that hold a NaN or an infinity, which must not reach back. c.v is what is written.
void state_space_by_tokens(const Chunk& c, float* S, float* out, const GatedDeltaArguments& x, const Plan& plan,
                           const Item& item, long t) {
  const long ld = plan.ldv;
  for (long i = 0; i < c.count; i++) {
    const float *k = c.kq + i * plan.ldk, *q = c.kq + (c.rows + i) * plan.ldk;
    const float decay = __builtin_expf(x.log_decay[(t + i) * x.G + item.head]);
    for (long j = 0; j < item.columns; j += VW) {
      vec answer = {}, written = load(c.v + i * ld + j);
      for (long p = 0; p < x.K; p++) {
        vec s = decay * load(S + p * ld + j) + k[p] * written;
        store(S + p * ld + j, s);
        answer += q[p] * s;
      }
      store(out + i * ld + j, x.scale * answer);
    }
  }
}

void state_space_chunk(const GatedDeltaForward& x, const Plan& plan, const Item& item, StateSpaceMemory& m, float* S, long t) {
  Chunk& c = m.chunk;
  const long ld = plan.ldv, width = padded(item.columns);
  const float* q = c.kq + c.rows * plan.ldk;
  read_gates(c, x, item, t);
  read_values(c, x, plan, item, t);
  scale_rows(c.v, c.v, c.beta, c.rows, width, ld);
  product(c.rows, width, x.K, rows_of(q, plan.ldk), S, ld, m.answers, ld);
  for (long i = 0; i < c.rows; i++)
    for (long j = 0; j < width; j += VW) store(m.answers + i * ld + j, x.scale * c.into[i] * load(m.answers + i * ld + j));
  form_M(c, m.m, x.scale);
  product(c.rows, width, c.rows, rows_of(m.m, LD_CHUNK), c.v, ld, m.answers, ld, 1, Filled::lower);
  if (all_finite(c.v, c.rows, width, ld) && all_finite(m.answers, c.rows, width, ld)) {
    scale_rows(m.out_of_rows, c.v, c.out_of, c.rows, width, ld);
    product(x.K, width, c.rows, columns_of(c.kq, plan.ldk), m.out_of_rows, ld, S, ld, c.across);
  } else {
    state_space_by_tokens(c, S, m.answers, x, plan, item, t);
  }
  const Rows out = {x.out, x.v_dtype, x.G * x.V};
  for (long i = 0; i < c.count; i++) write(out, t + i, item.head * x.V + item.column, m.answers + i * ld, item.columns);
}

}  // namespace

void state_space_forward(const GatedDeltaForward& x) {
  const Plan plan(x);
  const long together = heads_together(x), parts = (plan.group + together - 1) / together;
  Carver count;
  StateSpaceMemory(count, plan, x.K, together);
  float* memory = scratch_memory(size_t(x.threads) * count.used);
  parallel(x.N * x.H * parts * plan.blocks, x.threads, [&](long index) {
    const long block = index % plan.blocks, part = index / plan.blocks % parts, group = index / plan.blocks / parts;
    const long first = group * plan.group + part * together, heads = least(together, plan.group - part * together);
    Carver carver{memory + thread_index() * count.used};
    StateSpaceMemory m(carver, plan, x.K, together);
    const long size = x.K * plan.ldv;
    memset(m.S, 0, heads * size * sizeof(float));
    auto item_of = [&](long h) { return Item(x, plan, (first + h) * plan.blocks + block); };
    const Item leader = item_of(0);
    for (long h = 0; h < heads && x.state; h++) {
      const Item item = item_of(h);
      copy_state(m.S + h * size, plan.ldv, state_of(x.state, x, item, item.segment), x.V, x.K, item.columns);
    }
    Chunk& c = m.chunk;
    for (long t = leader.first; t < leader.end; t += CHUNK) {
      c.count = least(CHUNK, leader.end - t);
      c.rows = (c.count + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
      read_vectors(c, x, plan, leader, t);
      transpose(c.kt, LD_CHUNK, c.kq, plan.ldk, c.rows, x.K);
      triangle(c.kk + c.rows * LD_CHUNK, c.rows, 1, x.K, c.kq + c.rows * plan.ldk, plan.ldk, c.kt);
      for (long h = 0; h < heads; h++) state_space_chunk(x, plan, item_of(h), m, m.S + h * size, t);
    }
    for (long h = 0; h < heads; h++) {
      const Item item = item_of(h);
      float* to = const_cast<float*>(state_of(x.final_state, x, item, item.segment));
      copy_state(to, x.V, m.S + h * size, plan.ldv, x.K, item.columns);
    }
  });
}

void state_space_step(const GatedDeltaStep& x) {
  const long ldk = padded(x.K), ldv = padded(x.V), group = x.G / x.H, floats = 2 * ldk + 2 * ldv;
  float* memory = scratch_memory(size_t(x.threads) * floats);
  const Rows keys = keys_of(x), queries = queries_of(x), values = values_of(x), out = {x.out, x.v_dtype, x.G * x.V};
  parallel(x.N * x.G, x.threads, [&](long index) {
    const long n = index / x.G, head = index % x.G;
    float *k = memory + thread_index() * floats, *q = k + ldk, *v = q + ldk, *answer = v + ldv;
    read(k, keys, n, head / group * x.K, x.K);
    read(q, queries, n, head / group * x.K, x.K);
    read(v, values, n, head * x.V, x.V);
    const float decay = __builtin_expf(x.log_decay[index]), step = x.beta[index];
    float* S = x.memory + index * x.K * x.V;
    for (long j = 0; j < x.V; j += VW) {
      const long left = x.V - j;
      vec total = {}, written = step * load(v + j);
      for (long p = 0; p < x.K; p++) {
        vec s = decay * load_up_to(S + p * x.V + j, left) + k[p] * written;
        store_up_to(S + p * x.V + j, s, left);
        total += q[p] * s;
      }
      store(answer + j, x.scale * total);
    }
    write(out, n, head * x.V, answer, x.V);
  });
}

}  // namespace INTERLACE_ISA
