// Products with weights of 8 or 4 bits. Inputs become 16-bit steps of their group's largest, once per row; what a group
// sums is an exact integer, scaled once.
//
// A word of 32 bits holds inputs of one output: 4 of 8 bits (plus 128) or 8 of 4 bits, so that `(word >> BITS p) & mask`
// is the pair of 16-bit numbers 2p and 2p + 1. 16 words side by side are 16 outputs: no sum crosses lanes.
#pragma once

namespace INTERLACE_ISA {

constexpr long LANES = 16;                              // outputs of a block
constexpr int PER_BLOCK = LANES / VW;                   // vectors
constexpr int ROWS_BESIDE = sizeof(vec) == 64 ? 8 : 4;  // rows of x whose sums fit the registers
constexpr float SMALLEST = 1e-30f;                      // below, a group of inputs is zero
constexpr float MOST_STEPS = 32767.0f;

typedef int16_t svec __attribute__((vector_size(2 * VW)));
typedef int32_t ivec_anywhere __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int16_t svec_anywhere __attribute__((vector_size(2 * VW), aligned(2), may_alias));

// Rows of inputs as steps.
struct Steps {
  int16_t* steps;  // [rows, groups * group]
  float* scales;   // [rows, groups]; NaN where an input is not finite
  int32_t* sums;   // [rows, groups], of the steps
  long groups, group;

  static long groups_of(long D, long group) { return (D + group - 1) / group; }
  static size_t floats(long rows, long D, long group) {
    const long groups = groups_of(D, group), width = groups * group / 2;
    return size_t(rows) * (width + 2 * groups);
  }
  Steps(float* memory, long rows, long D, long group) : groups(groups_of(D, group)), group(group) {
    steps = reinterpret_cast<int16_t*>(memory);
    scales = memory + rows * groups * group / 2;
    sums = reinterpret_cast<int32_t*>(scales + rows * groups);
  }

  template <class T>
  void write(long r, const T* x, long D) const {
    for (long g = 0; g < groups; g++) {
      const long first = g * group, count = least(group, D - first);
      vec most = {}, wrong = {};
      for (long d = 0; d < count; d += VW) {
        const vec z = load_up_to(x + first + d, count - d);
        most = larger(most, z < 0 ? -z : z), wrong += 0.0f * z;
      }
      float largest = 0;
      for (int i = 0; i < VW; i++) largest = most[i] > largest ? most[i] : largest;
      const bool finite = sum(wrong) == 0;
      const float over = finite && largest > SMALLEST ? MOST_STEPS / largest : 0.0f;
      ivec total = {};
      int16_t* to = steps + (r * groups + g) * group;
      for (long d = 0; d < group; d += VW) {
        const vec z = d < count && over != 0 ? load_up_to(x + first + d, count - d) : vec{};
        const ivec q = (ivec)(z * over + 12582912.0f) - (ivec)splat(12582912.0f);  // to the nearest, ties to even
        total += q;
        *reinterpret_cast<svec_anywhere*>(to + d) = __builtin_convertvector(q, svec);
      }
      int32_t all = 0;
      for (int i = 0; i < VW; i++) all += total[i];
      sums[r * groups + g] = all;
      scales[r * groups + g] = finite ? (over != 0 ? largest / MOST_STEPS : 0.0f) : __builtin_nanf("");
    }
  }
};

// total + the products of pairs of 16-bit numbers, summed two by two.
inline ivec add_pairs(ivec total, ivec a, ivec b) {
#if defined(__AVX512VNNI__)
  return (ivec)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return total + (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return total + (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return total + (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return total + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// 16 outputs of R rows, y[r * ld + lane]. The order of a sum is the same for any R.
template <int BITS, int R>
inline void block_of_outputs(const QuantisedWeight& w, long block, const Steps& x, long row, float* y, long ld) {
  constexpr int PAIRS = 16 / BITS, SUMS = R == 1 ? PAIRS : 1;
  const long words = x.group * BITS / 32;
  const int32_t* word = w.words + block * x.groups * words * LANES;
  const bf16* scales = w.scales + block * x.groups * LANES;
  const bf16* minima = w.minima + block * x.groups * LANES;
  vec total[R][PER_BLOCK] = {};
  for (long g = 0; g < x.groups; g++) {
    const int16_t* steps[R];
    ivec sums[R][PER_BLOCK][SUMS] = {};
    for (int r = 0; r < R; r++) {
      steps[r] = x.steps + ((row + r) * x.groups + g) * x.group;
      if constexpr (BITS == 8)
        for (int v = 0; v < PER_BLOCK; v++) sums[r][v][0] -= 128 * x.sums[(row + r) * x.groups + g];
    }
    for (long k = 0; k < words; k++, word += LANES) {
      __builtin_prefetch(word + 1024, 0, 3);
      uvec held[PER_BLOCK];
#pragma GCC unroll 4
      for (int v = 0; v < PER_BLOCK; v++) held[v] = (uvec)*reinterpret_cast<const ivec_anywhere*>(word + v * VW);
#pragma GCC unroll 4
      for (int p = 0; p < PAIRS; p++) {
        ivec pair[PER_BLOCK];
#pragma GCC unroll 4
        for (int v = 0; v < PER_BLOCK; v++) pair[v] = (ivec)((held[v] >> BITS * p) & (BITS == 8 ? 0x00ff00ffu : 0x000f000fu));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          int32_t two;
          memcpy(&two, steps[r] + 2 * (k * PAIRS + p), sizeof two);
#pragma GCC unroll 4
          for (int v = 0; v < PER_BLOCK; v++) sums[r][v][p % SUMS] = add_pairs(sums[r][v][p % SUMS], pair[v], two - ivec{});
        }
      }
    }
    for (int r = 0; r < R; r++) {
      const float scale = x.scales[(row + r) * x.groups + g], shift = scale * x.sums[(row + r) * x.groups + g];
      for (int v = 0; v < PER_BLOCK; v++) {
        ivec all = sums[r][v][0];
        for (int s = 1; s < SUMS; s++) all += sums[r][v][s];
        total[r][v] += __builtin_convertvector(all, vec) * (load(scales + g * LANES + v * VW) * scale);
        if constexpr (BITS == 4) total[r][v] += load(minima + g * LANES + v * VW) * shift;
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < PER_BLOCK; v++) store(y + r * ld + v * VW, total[r][v]);
}

// `rows` rows of one block.
template <int BITS>
inline void rows_of_outputs(const QuantisedWeight& w, long block, const Steps& x, long row, long rows, float* y, long ld) {
  long r = 0;
  for (; r + ROWS_BESIDE <= rows; r += ROWS_BESIDE) block_of_outputs<BITS, ROWS_BESIDE>(w, block, x, row + r, y + r * ld, ld);
  for (; r + 2 <= rows; r += 2) block_of_outputs<BITS, 2>(w, block, x, row + r, y + r * ld, ld);
  for (; r < rows; r++) block_of_outputs<BITS, 1>(w, block, x, row + r, y + r * ld, ld);
}

inline void rows_of_outputs(const QuantisedWeight& w, long block, const Steps& x, long row, long rows, float* y, long ld) {
  if (w.bits == 8) rows_of_outputs<8>(w, block, x, row, rows, y, ld);
  else rows_of_outputs<4>(w, block, x, row, rows, y, ld);
}

}  // namespace INTERLACE_ISA
