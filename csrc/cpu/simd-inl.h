// Vectors of the instruction set this translation unit is compiled for.
//
// One source serves every instruction set. CMake compiles kernels.cpp (or topk_int8.cpp) once per set, and with it the
// headers named *-inl.h: they are for these sources alone, and all they define is in the namespace of the set. It gives
//   WALS_ISA           the namespace, e.g. isa_avx512
//   WALS_VECTOR_BYTES  16, 32 or 64
//   WALS_ROWS_PER_TILE height of the register tile (tile-inl.h)
// GCC and clang vector extensions do the rest. Nothing here may instantiate a standard library template
// with external linkage: the linker could keep the AVX-512 copy of it for everybody.
#pragma once

#include <cstdint>

namespace wals::cpu {
namespace WALS_ISA {

template <class T>
struct VecOf {
    typedef T type __attribute__((vector_size(WALS_VECTOR_BYTES)));
    typedef T unaligned __attribute__((vector_size(WALS_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
    typedef T aligned __attribute__((vector_size(WALS_VECTOR_BYTES), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int kWidth = WALS_VECTOR_BYTES / int(sizeof(T));

template <class T>
static inline Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename VecOf<T>::aligned*>(p);
}
template <class T>
static inline Vec<T> loadu(const T* p) {
    return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <class T>
static inline void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename VecOf<T>::aligned*>(p) = v;
}
template <class T>
static inline void storeu(T* p, Vec<T> v) {
    *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}
template <class T>
static inline Vec<T> splat(T x) {
    return x - Vec<T>{};  // folds to one broadcast
}

static inline float square_root(float x) {
    return __builtin_sqrtf(x);
}
static inline double square_root(double x) {
    return __builtin_sqrt(x);
}

static inline float absolute(float x) {
    return __builtin_fabsf(x);
}
static inline double absolute(double x) {
    return __builtin_fabs(x);
}

static constexpr int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

template <class T>
struct IndexOf;  // integer lanes as wide as T, for shuffles and compares
template <>
struct IndexOf<float> {
    typedef int32_t scalar;
    typedef int32_t type __attribute__((vector_size(WALS_VECTOR_BYTES)));
};
template <>
struct IndexOf<double> {
    typedef int64_t scalar;
    typedef int64_t type __attribute__((vector_size(WALS_VECTOR_BYTES)));
};
template <class T>
using Index = typename IndexOf<T>::type;

template <class T>
static inline Index<T> lane_index() {
    Index<T> i{};
    for (int l = 0; l < kWidth<T>; ++l) i[l] = typename IndexOf<T>::scalar(l);
    return i;
}

template <class T>
static inline Vec<T> shuffle2(Vec<T> a, Vec<T> b, Index<T> index) {  // lanes of a: 0..W-1, of b: W..2W-1
#if defined(__clang__)
    Vec<T> out{};
    for (int l = 0; l < kWidth<T>; ++l) out[l] = index[l] < kWidth<T> ? a[index[l]] : b[index[l] - kWidth<T>];
    return out;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

template <class T>
static inline T sum_lanes(Vec<T> v) {
    T s[kWidth<T>];
    storeu(s, v);
    for (int w = kWidth<T> / 2; w > 0; w /= 2)
        for (int l = 0; l < w; ++l) s[l] += s[l + w];
    return s[0];
}

/// out[l] = sum of the lanes of rows[l % N], N a power of two of at most W: levels of pairwise adds for all at once.
template <class T, int N>
static inline Vec<T> sum_each(Vec<T> (&rows)[N]) {
    constexpr int W = kWidth<T>;
    const Index<T> lane = lane_index<T>();
#pragma GCC unroll 8
    for (int half = N / 2; half >= 1; half /= 2) {
        // Combine rows i and i + half: the lanes with bit `half` clear keep row i, the others row i + half.
        const Index<T> second = ((lane & half) != 0) & W;
        const Index<T> a = (lane & ~half) + second, b = (lane | half) + second;
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            rows[i] = shuffle2<T>(rows[i], rows[i + half], a) + shuffle2<T>(rows[i], rows[i + half], b);
    }
#pragma GCC unroll 4
    for (int bit = N; bit < W; bit *= 2) rows[0] += shuffle2<T>(rows[0], rows[0], lane ^ bit);
    return rows[0];
}

/// Transposes a W x W block held in registers.
template <class T>
static inline void transpose(Vec<T> (&m)[kWidth<T>]) {
    constexpr int W = kWidth<T>;
    const Index<T> lane = lane_index<T>();
#pragma GCC unroll 8
    for (int half = 1; half < W; half *= 2) {
        const Index<T> upper = (lane & half) != 0;
        // Row i keeps its lanes with the bit clear and takes row i + half's there; the partner likewise.
        const Index<T> first = (lane & ~half) + (upper & W), second = (lane | half) + (upper & W);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            if (i & half) continue;
            const Vec<T> x = m[i], y = m[i + half];
            m[i] = shuffle2<T>(x, y, first);
            m[i + half] = shuffle2<T>(x, y, second);
        }
    }
}

/// Asks for a row of P elements. Always inline: GCC takes a function that does nothing else for one that does nothing.
template <class T>
static inline __attribute__((always_inline)) void prefetch_row(const T* row, int64_t P) {
    for (int64_t j = 0; j < P; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + j);
}

/// m[i] = element j + i of each of W rows, which need not be aligned.
template <class T>
static inline void load_transposed(const T* const* row, int64_t j, Vec<T> (&m)[kWidth<T>]) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth<T>; ++i) m[i] = loadu(row[i] + j);
    transpose<T>(m);
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
