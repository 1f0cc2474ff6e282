// One chunk of the gated delta rule, which its forward and backward share, and Kimi Delta's forward: how work is cut into
// items, how the inputs are read, and the products of the keys. Names: src/interlace/ops/gated_delta/README.md.
#pragma once

namespace INTERLACE_ISA {
namespace {

constexpr long CHUNK = 32;                                 // tokens
constexpr long CHUNKS = SNAPSHOT_TOKENS / CHUNK;           // from one snapshot to the next
constexpr long LD_CHUNK = (CHUNK / LINE | 1) * LINE;       // leading dimension of C x C matrices
constexpr float FORGOTTEN = -2000.0f;                      // exp of it is 0, and sums of it stay finite
constexpr float L2_EPS = 1e-6f;
constexpr long FEW_ITEMS = 16, NARROWEST = 32;             // below so many items, columns are split, down to so many

// How the work is cut, and the leading dimensions of what a thread works on.
struct Plan {
  long blocks, width;  // blocks of value columns, and the columns of each
  long group;          // value heads per key head
  long ldk, ldv, value_dim;

  explicit Plan(const GatedDeltaArguments& x) {
    blocks = 1;
    while (x.N * x.G * blocks < FEW_ITEMS && x.V >= 2 * blocks * NARROWEST) blocks *= 2;
    width = ((x.V + blocks - 1) / blocks + LINE - 1) / LINE * LINE;
    blocks = (x.V + width - 1) / width;
    group = x.G / x.H;
    ldk = leading(x.K), ldv = leading(width), value_dim = x.V;
  }
  long items(const GatedDeltaArguments& x) const { return x.N * x.G * blocks; }
};

struct Item {
  long segment, head, key_head, block, column, columns, first, end;  // tokens [first, end)

  Item(const GatedDeltaArguments& x, const Plan& plan, long index) {
    block = index % plan.blocks, index /= plan.blocks;
    head = index % x.G, segment = index / x.G;
    key_head = head / plan.group;
    column = block * plan.width, columns = least(plan.width, x.V - column);
    first = x.offsets[segment], end = x.offsets[segment + 1];
  }
};

// One chunk's inputs as floats, its decays, and the products of its keys. Rows past `count` are zero.
struct Chunk {
  long count, rows;  // tokens; rounded up to whole tiles
  float *kq;         // [2 rows, K]: keys, then queries, normalised if asked for
  float *v;          // [rows, V]
  float *kt;         // [K, rows]: keys transposed
  float *kk;         // [2 rows, rows]: K K^T, then Q K^T, as far as `triangle` goes
  float *decay;      // [rows, rows]: D, zero above the diagonal
  float *into, *out_of, *beta, *size;  // [rows]: exp(G_i), exp(G_last - G_i), beta; [2 rows]: 1 / norm
  float across;      // exp(G_last)

  Chunk(Carver& carver, const Plan& plan, long K) {
    kq = carver.take(2 * CHUNK * plan.ldk), v = carver.take(CHUNK * plan.ldv), kt = carver.take(K * LD_CHUNK);
    kk = carver.take(2 * CHUNK * LD_CHUNK), decay = carver.take(CHUNK * LD_CHUNK);
    into = carver.take(CHUNK), out_of = carver.take(CHUNK), beta = carver.take(CHUNK), size = carver.take(2 * CHUNK);
  }
};

Rows queries_of(const GatedDeltaArguments& x) { return {const_cast<void*>(x.query), x.qk_dtype, x.q_row}; }
Rows keys_of(const GatedDeltaArguments& x) { return {const_cast<void*>(x.key), x.qk_dtype, x.k_row}; }
Rows values_of(const GatedDeltaArguments& x) { return {const_cast<void*>(x.value), x.v_dtype, x.v_row}; }

// Ask for the inputs of the chunk that will be worked on next.
void prefetch_chunk(const GatedDeltaArguments& x, const Item& item, long t, bool values) {
  if (t < item.first) return;
  for (long i = t; i < least(t + CHUNK, item.end); i++) {
    prefetch(keys_of(x), i, item.key_head * x.K, x.K);
    prefetch(queries_of(x), i, item.key_head * x.K, x.K);
    if (values) prefetch(values_of(x), i, item.head * x.V + item.column, item.columns);
  }
}

// x / |x| in place; returns 1 / |x|.
float unit_length(float* x, long padded_size) {
  const float size = 1.0f / __builtin_sqrtf(dot(x, x, padded_size) + L2_EPS);
  for (long j = 0; j < padded_size; j += VW) store(x + j, size * load(x + j));
  return size;
}

void read_vectors(Chunk& c, const GatedDeltaArguments& x, const Plan& plan, const Item& item, long t) {
  const Rows sources[2] = {keys_of(x), queries_of(x)};
  for (int which = 0; which < 2; which++) {
    for (long i = 0; i < c.rows; i++) {
      float* row = c.kq + (which * c.rows + i) * plan.ldk;
      if (i >= c.count) {
        memset(row, 0, plan.ldk * sizeof(float));
        continue;
      }
      read(row, sources[which], t + i, item.key_head * x.K, x.K);
      if (x.normalise) c.size[which * c.rows + i] = unit_length(row, padded(x.K));
    }
  }
}

// A value head's columns of the chunk's tokens; rows past them are zero.
void read_head(float* to, const Chunk& c, const Rows& from, const Plan& plan, const Item& item, long t) {
  for (long i = 0; i < c.count; i++) read(to + i * plan.ldv, from, t + i, item.head * plan.value_dim + item.column, item.columns);
  memset(to + c.count * plan.ldv, 0, (c.rows - c.count) * plan.ldv * sizeof(float));
}

void read_values(Chunk& c, const GatedDeltaArguments& x, const Plan& plan, const Item& item, long t) {
  read_head(c.v, c, values_of(x), plan, item, t);
}

// Where row i of a lower triangular matrix ends, rounded up to whole lines; beyond that nothing is read or written.
long row_end(const Chunk& c, long i) { return least((i / LINE + 1) * LINE, padded(c.rows)); }

// The cumulated log decay is double until a difference has been taken, so that strong decay costs its weak neighbours
// no digits; a difference is never positive.
void read_gates(Chunk& c, const GatedDeltaArguments& x, const Item& item, long t) {
  double cumulated[CHUNK], total = 0;
  for (long i = 0; i < c.rows; i++) {
    float g = i < c.count ? x.log_decay[(t + i) * x.G + item.head] : 0.0f;
    c.beta[i] = i < c.count ? x.beta[(t + i) * x.G + item.head] : 0.0f;
    cumulated[i] = total += g < FORGOTTEN ? FORGOTTEN : g;
  }
  for (long i = c.rows; i < CHUNK; i++) cumulated[i] = total;
  for (long j = 0; j < c.rows; j += VW) {
    vec g = __builtin_convertvector(*reinterpret_cast<dvec_anywhere*>(cumulated + j), vec);
    vec rest = __builtin_convertvector(total - *reinterpret_cast<dvec_anywhere*>(cumulated + j), vec);
    store(c.into + j, exponential(g));
    store(c.out_of + j, exponential(rest));
  }
  c.across = c.into[c.rows - 1];
  ivec lane;
  for (int i = 0; i < VW; i++) lane[i] = i;
  for (long i = 0; i < c.rows; i++) {
    for (long j = 0; j < row_end(c, i); j += VW) {
      float* to = c.decay + i * LD_CHUNK + j;
      if (j > i) {
        store(to, vec{});
        continue;
      }
      vec difference = __builtin_convertvector(cumulated[i] - *reinterpret_cast<dvec_anywhere*>(cumulated + j), vec);
      store(to, select(lane + (int32_t)j > (int32_t)i, vec{}, exponential(difference)));
    }
  }
}

// The lower triangles of `count` matrices [rows, rows], stacked: c = a b, what lies right of row_end left out.
void triangle(float* c, long rows, long count, long depth, const float* a, long lda, const float* b) {
  for (long r = 0; r < rows; r += LINE)
    for (long first = r; first < count * rows; first += rows)
      product(least(LINE, rows - r), least(r + LINE, rows), depth, rows_of(a + first * lda, lda), b, LD_CHUNK, c + first * LD_CHUNK, LD_CHUNK);
}

void begin(Chunk& c, const GatedDeltaArguments& x, const Plan& plan, const Item& item, long t, bool queries) {
  c.count = least(CHUNK, item.end - t);
  c.rows = (c.count + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
  read_vectors(c, x, plan, item, t);
  read_gates(c, x, item, t);
  transpose(c.kt, LD_CHUNK, c.kq, plan.ldk, c.rows, x.K);
  triangle(c.kk, c.rows, queries ? 2 : 1, x.K, c.kq, plan.ldk, c.kt);
}

// A_ij = beta_i D_ij (k_i . k_j) below the diagonal.
void form_A(const Chunk& c, float* a) {
  for (long i = 0; i < c.rows; i++) {
    for (long j = 0; j < row_end(c, i); j += VW) {
      long at = i * LD_CHUNK + j;
      store(a + at, c.beta[i] * load(c.decay + at) * load(c.kk + at));
    }
    a[i * LD_CHUNK + i] = 0;
  }
}

// M_ij = scale D_ij (q_i . k_j) up to the diagonal.
void form_M(const Chunk& c, float* m, float scale) {
  const float* qk = c.kk + c.rows * LD_CHUNK;
  for (long i = 0; i < c.rows; i++)
    for (long j = 0; j < row_end(c, i); j += VW) {
      long at = i * LD_CHUNK + j;
      store(m + at, scale * load(c.decay + at) * load(qk + at));
    }
}

// to = coefficient_i from_i for rows of `width` floats.
void scale_rows(float* to, const float* from, const float* coefficient, long rows, long width, long ld) {
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < width; j += VW) store(to + i * ld + j, coefficient[i] * load(from + i * ld + j));
}

void copy_state(float* to, long ld_to, const float* from, long ld_from, long K, long columns) {
  for (long k = 0; k < K; k++) memcpy(to + k * ld_to, from + k * ld_from, columns * sizeof(float));
}

const float* state_of(const float* states, const GatedDeltaArguments& x, const Item& item, long row) {
  return states + ((row * x.G + item.head) * x.K) * x.V + item.column;
}

// Token by token, as the recurrence says: for chunks that hold a NaN or an infinity, which must not reach back.
// Overwrites c.v.
void by_tokens(Chunk& c, float* S, float* out, const GatedDeltaArguments& x, const Plan& plan, const Item& item, long t) {
  long ld = plan.ldv;
  for (long i = 0; i < c.count; i++) {
    const float *k = c.kq + i * plan.ldk, *q = c.kq + (c.rows + i) * plan.ldk;
    float *w = c.v + i * ld, *o = out + i * ld;
    float decay = __builtin_expf(x.log_decay[(t + i) * x.G + item.head]);
    for (long j = 0; j < item.columns; j += VW) {
      vec read = {}, answer = {};
      for (long p = 0; p < x.K; p++) {
        vec s = decay * load(S + p * ld + j);
        store(S + p * ld + j, s);
        read += k[p] * s;
      }
      vec written = c.beta[i] * (load(w + j) - read);
      for (long p = 0; p < x.K; p++) {
        vec s = load(S + p * ld + j) + k[p] * written;
        store(S + p * ld + j, s);
        answer += q[p] * s;
      }
      store(o + j, x.scale * answer);
    }
  }
}

}  // namespace
}  // namespace INTERLACE_ISA
