// Copies of a row's table rows in half the bytes, for the products of conjugate gradients.
//
// CG takes a row's table rows several times: once for the residual, then once a step. The first pass reads them where
// they lie, all over the table, and leaves a copy with about bfloat16's precision; the products read that in a stream.
// Products say how the loss bends, not where its minimum is: rounded by up to 2^-8 in each element they change a step's
// size and direction a little, while the residual, from the table itself in every half-sweep, still says when to stop.
// A few steps lower the loss as far as those of the table do (test_solve_iterative.py); many steps, which end where
// rounding lets them, do not use it.
#pragma once

#include "kernels.h"
#include "simd-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// The copy is for float factors.
template <class T>
constexpr bool kHasCopy = sizeof(T) == 4;

/// Words of an entry's copy, one for two factors.
template <class T>
static inline int64_t copy_stride(int64_t D) {
    return round_up(D, 2 * kWidth<T>) / 2;
}

/// Entries of a row that are copied at most.
template <class T>
static inline int64_t copied_entries(int64_t D) {
    return kHasCopy<T> ? limits::copy_bytes / (copy_stride<T>(D) * int64_t(sizeof(T))) : 0;
}

typedef uint32_t Bits __attribute__((vector_size(WALS_VECTOR_BYTES)));

/// Words of x (their low halves) and y (all of them): y is rounded so that it is nearest with x's half as its last
/// bits, which then need not be masked away to read it.
static inline Vec<float> pack_pair(Vec<float> x, Vec<float> y) {
    const Bits low = (Bits(x) + 0x8000) >> 16;
    const Bits high = (Bits(y) + 0x8000 - low) & 0xffff0000;
    const Bits tiny = Bits((Bits(y) & 0x7f800000) == 0);  // zero: the difference would borrow from the sign
    return Vec<float>((high & ~tiny) | low);
}
static inline Vec<float> first_of_pair(Vec<float> word) {
    return Vec<float>(Bits(word) << 16);
}
static inline Vec<float> second_of_pair(Vec<float> word) {
    return word;
}

/// Copies one row of the table, D elements and zeros up to whole vectors.
static inline void copy_row(const float* row, int64_t D, float* copy) {
    constexpr int W = kWidth<float>;
    int64_t j = 0;
    for (; j + W < D; j += 2 * W, copy += W) store(copy, pack_pair(load(row + j), load(row + j + W)));
    if (j < D) store(copy, pack_pair(load(row + j), Vec<float>{}));
}

/// Whether steps taken with the copy cannot raise the row's loss, which bends with the table.
///
/// Steps end at the lowest point, by the copy's matrix A~, of all that they span: w times the way to it, d, changes the
/// loss by w^2 d'A d - 2 w d'A~ d, which is no rise where w d'A d <= 2 d'A~ d. With rounded rows r~ and positive
/// weights a, d'A d <= (1 + k)^2 d'A~ d, where k^2 = sum of a ((r - r~) . d)^2 / d'A~ d <= 2^-16 sum of a |r|^2 / the
/// least of `base`: the first for errors that all add up. For w above 1 errors of random signs, the usual ones, are
/// taken to add up to a quarter of it.
template <class T>
static inline bool copy_lowers_loss(const T* base, const T* diagonal, int64_t D, double w) {
    double least = double(base[0]), sum = 0;
    for (int64_t j = 0; j < D; ++j) {
        least = double(base[j]) < least ? double(base[j]) : least;
        sum += double(diagonal[j]) - double(base[j]);
    }
    const double k = least > 0 ? __builtin_sqrt(0x1p-16 * sum / least) : 1;
    return (1 + k) * (1 + k) <= 2 && w * (1 + k / 4) * (1 + k / 4) <= 2;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
