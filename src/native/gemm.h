// Small matrix products whose operands lie in the cache: a tile of the result stays in registers, rows of B are vectors,
// elements of A are broadcast, so A may lie in any order.
#pragma once

#include "simd.h"

namespace INTERLACE_ISA {

// Accumulators, a row of B and a broadcast element fill the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 4, TILE_VECTORS = 3;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif

struct Matrix {  // element (r, c) at data[r * row + c * column]
  const float* data;
  long row, column;
};
inline Matrix rows_of(const float* data, long ld) { return {data, ld, 1}; }
inline Matrix columns_of(const float* data, long ld) { return {data, 1, ld}; }  // the transposed of a row-major matrix

enum class Filled { full, lower, upper };  // where A is not zero; its diagonal counts to both

template <int R, int N>
inline void product_tile(long from, long to, Matrix a, const float* b, long ldb, float* c, long ldc, float keep) {
  vec total[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) total[r][n] = keep == 0 ? vec{} : keep * load(c + r * ldc + n * VW);
  for (long p = from; p < to; p++) {
    vec line[N];
    for (int n = 0; n < N; n++) line[n] = load(b + p * ldb + n * VW);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      float x = a.data[r * a.row + p * a.column];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) total[r][n] += x * line[n];
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(c + r * ldc + n * VW, total[r][n]);
}

template <int N>
inline void product_panel(long rows, long depth, Matrix a, Filled filled, const float* b, long ldb, float* c, long ldc,
                          float keep) {
  long r = 0;
  auto tile = [&](auto size) {
    constexpr int R = decltype(size)::value;
    for (; r + R <= rows; r += R) {
      long from = filled == Filled::upper ? least(r, depth) : 0;
      long to = filled == Filled::lower ? least(r + R, depth) : depth;
      product_tile<R, N>(from, to, {a.data + r * a.row, a.row, a.column}, b, ldb, c + r * ldc, ldc, keep);
    }
  };
  tile(Int<TILE_ROWS>{});
  tile(Int<4>{});
  tile(Int<1>{});
}

// C [rows, columns] = keep C + A [rows, depth] B [depth, columns]; with keep = 0, C is not read.
inline void product(long rows, long columns, long depth, Matrix a, const float* b, long ldb, float* c, long ldc,
                    float keep = 0, Filled filled = Filled::full) {
  long vectors = (columns + VW - 1) / VW, v = 0;
  auto panel = [&](auto size) {
    constexpr int N = decltype(size)::value;
    product_panel<N>(rows, depth, a, filled, b + v * VW, ldb, c + v * VW, ldc, keep);
    v += N;
  };
  while (vectors - v > TILE_VECTORS + 1 || vectors - v == TILE_VECTORS) panel(Int<TILE_VECTORS>{});
  while (vectors - v >= 2) panel(Int<2>{});
  if (vectors - v == 1) panel(Int<1>{});
}

// Substitution in place, a block of rows at a time: X <- (I + A)^-1 X for strictly lower triangular A [rows, rows].
template <int R, int N>
inline void solve_tile(long first, Matrix a, float* x, long ld) {
  vec total[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) total[r][n] = load(x + (first + r) * ld + n * VW);
  for (long p = 0; p < first; p++) {
    vec line[N];
    for (int n = 0; n < N; n++) line[n] = load(x + p * ld + n * VW);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      float y = a.data[(first + r) * a.row + p * a.column];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) total[r][n] -= y * line[n];
    }
  }
#pragma GCC unroll 8
  for (int r = 1; r < R; r++)
#pragma GCC unroll 8
    for (int s = 0; s < r; s++) {
      float y = a.data[(first + r) * a.row + (first + s) * a.column];
      for (int n = 0; n < N; n++) total[r][n] -= y * total[s][n];
    }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(x + (first + r) * ld + n * VW, total[r][n]);
}

// The same for X <- (I + A)^-T X: from the last block of rows to the first.
template <int R, int N>
inline void solve_transposed_tile(long first, long rows, Matrix a, float* x, long ld) {
  vec total[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) total[r][n] = load(x + (first + r) * ld + n * VW);
  for (long p = first + R; p < rows; p++) {
    vec line[N];
    for (int n = 0; n < N; n++) line[n] = load(x + p * ld + n * VW);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      float y = a.data[p * a.row + (first + r) * a.column];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) total[r][n] -= y * line[n];
    }
  }
#pragma GCC unroll 8
  for (int r = R - 2; r >= 0; r--)
#pragma GCC unroll 8
    for (int s = r + 1; s < R; s++) {
      float y = a.data[(first + s) * a.row + (first + r) * a.column];
      for (int n = 0; n < N; n++) total[r][n] -= y * total[s][n];
    }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(x + (first + r) * ld + n * VW, total[r][n]);
}

// rows is a multiple of TILE_ROWS.
inline void solve(long rows, long columns, Matrix a, float* x, long ld, bool transposed) {
  constexpr int R = TILE_ROWS;
  long vectors = (columns + VW - 1) / VW, v = 0;
  auto panel = [&](auto size) {
    constexpr int N = decltype(size)::value;
    if (transposed)
      for (long r = rows - R; r >= 0; r -= R) solve_transposed_tile<R, N>(r, rows, a, x + v * VW, ld);
    else
      for (long r = 0; r < rows; r += R) solve_tile<R, N>(r, a, x + v * VW, ld);
    v += N;
  };
  while (vectors - v >= TILE_VECTORS) panel(Int<TILE_VECTORS>{});
  while (vectors - v >= 1) panel(Int<1>{});
}

}  // namespace INTERLACE_ISA
