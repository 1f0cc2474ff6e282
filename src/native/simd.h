// Vectors of floats by the compiler's vector extensions: 4, 8 or 16 wide, whatever this file is compiled for.
//
// Everything in INTERLACE_ISA's namespace is compiled once per instruction set. Nothing here may use an inline function
// of the standard library: the linker would keep one copy of it, perhaps the one this processor cannot run.
#pragma once

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "arguments.h"

namespace INTERLACE_ISA {

constexpr int VW = INTERLACE_VECTOR_FLOATS;  // floats in a vector
constexpr int LINE = 16;                     // floats in a cache line

typedef float vec __attribute__((vector_size(4 * VW)));
typedef int32_t ivec __attribute__((vector_size(4 * VW)));
typedef uint32_t uvec __attribute__((vector_size(4 * VW)));
typedef uint16_t hvec __attribute__((vector_size(2 * VW)));
typedef double dvec __attribute__((vector_size(8 * VW)));
typedef float vec_anywhere __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef uint16_t hvec_anywhere __attribute__((vector_size(2 * VW), aligned(2), may_alias));
typedef double dvec_anywhere __attribute__((vector_size(8 * VW), aligned(8), may_alias));

inline vec splat(float x) { return x - vec{}; }  // x - 0 is x, also for -0
inline vec load(const float* p) { return *reinterpret_cast<const vec_anywhere*>(p); }
inline void store(float* p, vec x) { *reinterpret_cast<vec_anywhere*>(p) = x; }

inline vec load(const bf16* p) {
  uvec wide = __builtin_convertvector(*reinterpret_cast<const hvec_anywhere*>(p), uvec);
  return (vec)(wide << 16);
}

inline void store(bf16* p, vec x) {  // rounds to nearest, ties to even; NaN stays NaN
#ifdef __AVX512BF16__
  __m256bh y = _mm512_cvtneps_pbh((__m512)x);
  memcpy(p, &y, sizeof y);
#else
  uvec u = (uvec)x;
  uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  uvec quiet = (u >> 16) | 0x40;
  ivec is_nan = x != x;
  uvec y = (uvec)((is_nan & (ivec)quiet) | (~is_nan & (ivec)rounded));
  *reinterpret_cast<hvec_anywhere*>(p) = __builtin_convertvector(y, hvec);
#endif
}

// The first n < VW elements; the rest are 0.
template <class T>
inline vec load_first(const T* p, long n) {
  T buffer[VW] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

template <class T>
inline void store_first(T* p, vec x, long n) {
  T buffer[VW];
  store(buffer, x);
  memcpy(p, buffer, n * sizeof(T));
}

inline float value(const float* p) { return *p; }
inline float value(const bf16* p) { return load_first(p, 1)[0]; }

template <class T>
inline vec load_up_to(const T* p, long n) { return n >= VW ? load(p) : load_first(p, n); }
template <class T>
inline void store_up_to(T* p, vec x, long n) { n >= VW ? store(p, x) : store_first(p, x, n); }

inline vec select(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
inline vec larger(vec a, vec b) { return select(a < b, b, a); }  // a NaN in a stays

// e^x to 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN. Cephes' polynomial.
inline vec exponential(vec x) {
  const vec low = splat(-104.0f), high = splat(89.0f), magic = splat(12582912.0f);
  x = select(x < low, low, x);
  x = select(x > high, high, x);
  vec shifted = x * 1.44269504088896341f + magic;  // the nearest integer, in the low bits
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec y = splat(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  ivec exponent = (ivec)shifted - (ivec)magic + 127;
  exponent = exponent & (exponent > 0);  // 2^-127 and less becomes 0; 2^128 is infinity
  return y * (vec)(exponent << 23);
}

inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }
inline vec silu(vec x) { return x / (1.0f + exponential(-x)); }
// d silu(x) / dx
inline vec silu_slope(vec x) {
  vec s = sigmoid(x);
  return s + s * (1.0f - s) * x;
}

// Rows of elements of either type, read and written as floats.
struct Rows {
  void* data;
  DType dtype;
  long row;  // elements from one row to the next

  template <class T>
  T* at(long r, long column) const { return static_cast<T*>(data) + r * row + column; }
};

// body(d, part) for each vector of a row of n elements: whole vectors first, then what is left of one, which
// load_part and store_part treat as padded with zeros.
template <class Body>
inline void along_row(long n, const Body& body) {
  long d = 0;
  for (; d + VW <= n; d += VW) body(d, Int<0>{});
  if (d < n) body(d, Int<1>{});
}

template <class T, int PART>
inline vec load_part(const T* p, long d, long n, Int<PART>) {
  if constexpr (PART) return load_first(p + d, n - d);
  else return load(p + d);
}

template <class T, int PART>
inline void store_part(T* p, vec x, long d, long n, Int<PART>) {
  if constexpr (PART) store_first(p + d, x, n - d);
  else store(p + d, x);
}

template <int PART>
inline vec load_part(const void* p, DType dtype, long d, long n, Int<PART> part) {
  return dtype == DType::bf16 ? load_part(static_cast<const bf16*>(p), d, n, part) : load_part(static_cast<const float*>(p), d, n, part);
}

template <int PART>
inline void store_part(void* p, DType dtype, vec x, long d, long n, Int<PART> part) {
  if (dtype == DType::bf16) store_part(static_cast<bf16*>(p), x, d, n, part);
  else store_part(static_cast<float*>(p), x, d, n, part);
}

// The address of element `index`; null stays null.
inline const void* element(const void* p, DType dtype, long index) {
  return p ? static_cast<const char*>(p) + index * (dtype == DType::bf16 ? 2 : 4) : nullptr;
}
inline void* element(void* p, DType dtype, long index) { return const_cast<void*>(element(static_cast<const void*>(p), dtype, index)); }

// to is padded to whole vectors, and what is past n becomes 0.
template <class T>
inline void widen(float* to, const T* from, long n) {
  long i = 0;
  for (; i + VW <= n; i += VW) store(to + i, load(from + i));
  if (i < n) store(to + i, load_first(from + i, n - i));
}

template <class T>
inline void narrow(T* to, const float* from, long n) {
  long i = 0;
  for (; i + VW <= n; i += VW) store(to + i, load(from + i));
  if (i < n) store_first(to + i, load_first(from + i, n - i), n - i);
}

inline void read(float* to, const Rows& rows, long r, long column, long n) {
  if (rows.dtype == DType::bf16) widen(to, rows.at<bf16>(r, column), n);
  else widen(to, rows.at<float>(r, column), n);
}

inline void write(const Rows& rows, long r, long column, const float* from, long n) {
  if (rows.dtype == DType::bf16) narrow(rows.at<bf16>(r, column), from, n);
  else narrow(rows.at<float>(r, column), from, n);
}

// Ask for the cache lines of n elements of one row; rows of one head lie too far apart for the processor to guess.
inline void prefetch(const Rows& rows, long r, long column, long n) {
  const long size = rows.dtype == DType::bf16 ? 2 : 4;
  const char* first = static_cast<const char*>(rows.data) + (r * rows.row + column) * size;
  for (long i = 0; i < n * size; i += 64) __builtin_prefetch(first + i, 0, 2);  // rows 4 KiB apart share sets of the first cache
}

// A leading dimension for rows of n floats: whole cache lines, an odd number of them, so that a column of rows spreads
// over all sets of the cache.
inline long leading(long n) { return ((n + LINE - 1) / LINE | 1) * LINE; }
inline long padded(long n) { return (n + VW - 1) / VW * VW; }
inline long least(long a, long b) { return a < b ? a : b; }
inline long most(long a, long b) { return a > b ? a : b; }

template <int N, int... L>
struct Count : Count<N - 1, N - 1, L...> {};
template <int... L>
struct Count<0, L...> {
  // Swap bit S of the row index with bit S of the lane index, for rows a (bit clear) and b (bit set).
  template <int S>
  static void swap(vec& a, vec& b) {
    vec low = __builtin_shufflevector(a, b, ((L & S) ? VW + L - S : L)...);
    vec high = __builtin_shufflevector(a, b, ((L & S) ? VW + L : L + S)...);
    a = low, b = high;
  }
  // Each lane's partner, whose number differs in bit S.
  template <int S>
  static vec crossed(vec x) {
    return __builtin_shufflevector(x, x, (L ^ S)...);
  }
};

inline float sum(vec x) {
  if constexpr (VW > 8) x += Count<VW>::template crossed<8 % VW>(x);
  if constexpr (VW > 4) x += Count<VW>::template crossed<4 % VW>(x);
  x += Count<VW>::template crossed<2>(x);
  x += Count<VW>::template crossed<1>(x);
  return x[0];
}

inline bool all_finite(const float* x, long rows, long width, long ld) {
  vec wrong = {};  // becomes NaN where anything is not finite
  for (long r = 0; r < rows; r++)
    for (long d = 0; d < width; d += VW) wrong += 0.0f * load(x + r * ld + d);
  return sum(wrong) == 0;
}

inline float dot(const float* a, const float* b, long padded) {
  vec total = {};
  for (long i = 0; i < padded; i += VW) total += load(a + i) * load(b + i);
  return sum(total);
}

template <int S>
inline void transpose_stage(vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < VW; i++)
    if (!(i & S)) Count<VW>::template swap<S>(rows[i], rows[i | S]);
}

// to [columns, padded(rows)] = from [rows, columns] transposed; both buffers are padded to whole vectors.
inline void transpose(float* to, long ld_to, const float* from, long ld_from, long rows, long columns) {
  for (long r = 0; r < rows; r += VW) {
    for (long c = 0; c < columns; c += VW) {
      vec block[VW];
      for (int i = 0; i < VW; i++) block[i] = r + i < rows ? load(from + (r + i) * ld_from + c) : vec{};
      transpose_stage<1>(block);
      transpose_stage<2>(block);
      if constexpr (VW > 4) transpose_stage<4 % VW>(block);
      if constexpr (VW > 8) transpose_stage<8 % VW>(block);
      for (int i = 0; i < VW && c + i < columns; i++) store(to + (c + i) * ld_to + r, block[i]);
    }
  }
}

}  // namespace INTERLACE_ISA
