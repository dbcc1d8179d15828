// Eigenvalues and eigenvectors of a Gram matrix G (D, D) in float64 (reference: numpy.linalg.eigh): two-sided block
// Jacobi. Nothing of it waits for the host: how many sweeps are needed is decided by a counter in device memory.
//
// G is padded with zeros to P, whole pairs of 16 columns. A sweep is a tournament of the P / 16 blocks of columns: each
// meets each other once, P / 32 pairs in each of P / 16 - 1 rounds (pair_of). A pair's 32 x 32 matrix is rotated by one
// block in shared memory, each of its 496 elements once, in 31 steps of 16 rotations, whose product Q (32, 32) is then
// applied to the rest: G = Q' G Q, V = V Q. The order is fixed, so results are the same bits each time. Rotations are
// those of Rutishauser (Numer. Math. 9, 1966), x - s (y + h x) with h = tan(angle / 2): errors of a small rotation are
// small, and some 10 sweeps leave V orthonormal to about sqrt(P) roundings.
//
// An element counts while it is above rounding, eps |G|_F. Below the diagonal that leaves at most P eps |G|_F, so
// eigenvalues are within some P eps |G|_F of the true ones, as LAPACK's are; tests hold 2 (D + 8) eps |G|_2 for values,
// residuals and orthogonality, of which a third is used. A sweep without a rotation ends it: later launches read one
// number and leave. Convergence is quadratic, after 5 to 10 sweeps that depend on G: 9 in all for random factors with
// D = 256, 13 for eigenvalues falling by 10^4, 24 by 10^12; 4 from the basis of a Gram matrix that 1 % was added to.
//
// Cost: a sweep has P - 2 + P / 16 dependent steps of rotations, some 700 cycles each (turn_of, two barriers), and 2 (P / 16 - 1) launches; 8 P^3 flops in float64 (4 for G, by halves, 4 for V); each
// round reads and writes 1.5 P^2 numbers, which stay in L2. [E] on paper, for an H100 at 1.7 GHz: a round is 13 us of
// rotations and 5 to 10 us of launches and products, a sweep so 0.14 / 0.3 / 0.7 ms at D = 128 / 256 / 512, beside
// LAPACK's 1.3 / 5.7 / 37 ms for all of it on a host that the device waits for. cuSOLVER would be the library for it:
// its info goes to the host, torch waits for that, and nothing stands in for it where there is no device.
//
// Not yet run on a device.
#pragma once

#include "block.cuh"

namespace wals::cuda {

constexpr int kPair = 32;  // columns of two blocks
constexpr int kPairStride = kPair + 1;
constexpr int kMostSweeps =
    26;  // G with eigenvalues falling by 10^12 takes 24 at D = 256; beyond, little is left to do
constexpr int kPairThreads = 256, kTurnThreads = 64, kRankThreads = 256;

/// What the eigenproblem keeps in its workspace: P is D in whole pairs.
struct SpectrumWork {
    int D, P;
    double* matrix;    // (P, P), in the end diagonal
    double* basis;     // (P, P), eigenvectors in columns
    double* turns;     // (P / 32, 32, 32): the pairs' rotations of this round
    double* row_norm;  // (P): squares of G's rows
    double* rounding;  // (1): elements up to this are none
    int* turned;       // (P / 32): rotations of the pair in this round
    int* rotations;    // (kMostSweeps) of each sweep

    __device__ __forceinline__ bool is_done(int sweep) const { return sweep > 0 && rotations[sweep - 1] == 0; }
};

/// Who meets whom in a round of a tournament of n, n even, in which nobody pauses: 0 <= round < n - 1, k < n / 2.
struct Meeting {
    int first, second;
};
__device__ __forceinline__ Meeting meeting_of(int round, int k, int n) {
    if (k == 0) return {round, n - 1};
    const int a = round + k, b = round - k, i = a < n - 1 ? a : a - (n - 1), j = b >= 0 ? b : b + n - 1;
    return {min(i, j), max(i, j)};
}

/// Column of the matrix that is column l of the pair.
__device__ __forceinline__ int pair_column(Meeting pair, int l) {
    return 16 * (l < 16 ? pair.first : pair.second) + l % 16;
}

/// matrix = G, basis = `start` (D, D) or the identity, padded; sums of squares of rows. One block a row.
__global__ void __launch_bounds__(kPairThreads)
    spectrum_start_kernel(SpectrumWork w, const double* gram, const double* start) {
    STATIC_SMEM(scratch, double[kPairThreads / 32]);
    const int i = int(blockIdx.x);
    double sum = 0;
    for (int j = int(threadIdx.x); j < w.P; j += kPairThreads) {
        const bool inside = i < w.D && j < w.D;
        const double g = inside ? gram[int64_t{i} * w.D + j] : 0.0;
        w.matrix[int64_t{i} * w.P + j] = g;
        w.basis[int64_t{i} * w.P + j] = inside && start ? start[int64_t{i} * w.D + j] : i == j ? 1.0 : 0.0;
        sum += g * g;
    }
    sum = block_reduce<kPairThreads / 32>(sum, Sum(), scratch);
    if (threadIdx.x == 0) w.row_norm[i] = sum;
    if (i == 0)
        for (int s = int(threadIdx.x); s < kMostSweeps; s += kPairThreads) w.rotations[s] = 0;
}

/// rounding = eps |G|_F; one block.
__global__ void __launch_bounds__(kPairThreads) spectrum_rounding_kernel(SpectrumWork w) {
    STATIC_SMEM(scratch, double[kPairThreads / 32]);
    double sum = 0;
    for (int i = int(threadIdx.x); i < w.P; i += kPairThreads) sum += w.row_norm[i];
    sum = block_reduce<kPairThreads / 32>(sum, Sum(), scratch);
    if (threadIdx.x == 0) *w.rounding = 0x1p-52 * sqrt(sum);
}

/// A rotation: sine, tangent of half the angle, and what goes from one diagonal element to the other.
struct Turn {
    double sine, half, shift;
    __device__ __forceinline__ void apply(double& x, double& y) const {
        const double before = x;
        x -= sine * (y + half * x);
        y += sine * (before - half * y);
    }
};

/// The rotation that makes (a, o; o, d) diagonal, by an angle of at most 45 degrees: two reciprocal roots and one
/// division in float64, which are most of a step.
__device__ __forceinline__ Turn turn_of(double a, double d, double o) {
    const double x = d - a, y = x < 0 ? -o : o, r = rsqrt(x * x + 4 * o * o);
    const double square = 0.5 + 0.5 * fabs(x) * r, inverse = rsqrt(square);  // of the cosine
    const double sine = y * r * inverse;
    return {sine, sine / (1 + square * inverse), sine * inverse * o};
}

/// Rotates the pairs of a round, one block each: at most `repeats` times all of a pair's elements. Barriers: one when
/// the step's 16 rotations are known, one when they are done; threads (p, q), q <= p, own the four elements where pairs
/// p and q of columns meet, and their mirror image. Static shared memory: 17 KiB.
__global__ void __launch_bounds__(kPairThreads)
    spectrum_pairs_kernel(SpectrumWork w, int sweep, int round, int repeats) {
    STATIC_SMEM(s, double[kPair][kPairStride]);
    STATIC_SMEM(v, double[kPair][kPairStride]);
    STATIC_SMEM(turns, Turn[kPair / 2]);
    if (w.is_done(sweep)) return;
    const int t = int(threadIdx.x), k = int(blockIdx.x), p = t / 16, q = t % 16;
    const Meeting pair = meeting_of(round, k, w.P / 16);
    const double rounding = *w.rounding;
    for (int i = t; i < kPair * kPair; i += kPairThreads) {
        const int row = i / kPair, column = i % kPair;
        s[row][column] = w.matrix[int64_t{pair_column(pair, row)} * w.P + pair_column(pair, column)];
        v[row][column] = row == column ? 1.0 : 0.0;
    }
    __syncthreads();
    int all = 0;
    for (int repeat = 0, last = 1; repeat < repeats && last > 0; ++repeat) {
        last = 0;
        for (int step = 0; step < kPair - 1; ++step) {
            bool turns_now = false;
            if (t < kPair / 2) {
                const Meeting own = meeting_of(step, t, kPair);
                const double o = s[own.first][own.second];
                turns_now = fabs(o) > rounding;
                turns[t] = turns_now ? turn_of(s[own.first][own.first], s[own.second][own.second], o) : Turn{0, 0, 0};
            }
            const int now = __syncthreads_count(turns_now);
            last += now;
            if (now == 0) continue;
            const Meeting rows = meeting_of(step, p, kPair), columns = meeting_of(step, q, kPair);
            const Turn left = turns[p], right = turns[q];
            if (q == p) {
                s[rows.first][rows.first] -= left.shift;
                s[rows.second][rows.second] += left.shift;
                if (left.sine != 0) s[rows.first][rows.second] = s[rows.second][rows.first] = 0;
            } else if (q < p && (left.sine != 0 || right.sine != 0)) {
                double a = s[rows.first][columns.first], b = s[rows.first][columns.second];
                double c = s[rows.second][columns.first], d = s[rows.second][columns.second];
                left.apply(a, c);
                left.apply(b, d);
                right.apply(a, b);
                right.apply(c, d);
                s[rows.first][columns.first] = s[columns.first][rows.first] = a;
                s[rows.first][columns.second] = s[columns.second][rows.first] = b;
                s[rows.second][columns.first] = s[columns.first][rows.second] = c;
                s[rows.second][columns.second] = s[columns.second][rows.second] = d;
            }
            if (right.sine != 0)
                for (int row = p; row < kPair; row += 16) right.apply(v[row][columns.first], v[row][columns.second]);
            __syncthreads();
        }
        all += last;
    }
    if (t == 0) {
        w.turned[k] = all;
        if (all > 0) atomicAdd(w.rotations + sweep, all);
    }
    if (all == 0) return;
    for (int i = t; i < kPair * kPair; i += kPairThreads) {
        const int row = i / kPair, column = i % kPair;
        w.matrix[int64_t{pair_column(pair, row)} * w.P + pair_column(pair, column)] = s[row][column];
        w.turns[int64_t{k} * kPair * kPair + i] = v[row][column];
    }
}

using PairTile = double[kPair][kPairStride];

/// A thread's 4 x 4 elements of a product of two tiles in shared memory.
struct TileProduct {
    int row, column;
    double sum[4][4] = {};
    __device__ __forceinline__ TileProduct() : row(int(threadIdx.x) / 8 * 4), column(int(threadIdx.x) % 8 * 4) {}

    /// sum += a b, or a' b.
    template <bool kTransposed>
    __device__ __forceinline__ void add(const PairTile& a, const PairTile& b) {
#pragma unroll 4
        for (int k = 0; k < kPair; ++k) {
            double x[4], y[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = kTransposed ? a[k][row + i] : a[row + i][k], y[i] = b[k][column + i];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
        }
    }
    __device__ __forceinline__ void store(PairTile& out) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) out[row + i][column + j] = sum[i][j];
    }
};

/// put(row, column) for all elements of a tile, neighbouring threads in a row.
template <class Put>
__device__ __forceinline__ void for_each_element(Put&& put) {
    for (int i = int(threadIdx.x); i < kPair * kPair; i += kTurnThreads) put(i / kPair, i % kPair);
}

/// Block i of the tiles below the diagonal, in rows.
__device__ __forceinline__ Meeting tile_below(int i) {
    int row = 1;
    while (row * (row + 1) / 2 <= i) ++row;
    return {i - row * (row - 1) / 2, row};
}

/// Applies the rotations of a round to what no pair has for itself. grid: the tiles where pairs q < p meet, which
/// become Qp' tile Qq and whose mirror image is written too, then tiles of 32 rows of the basis and pair q, which
/// become tile Qq. Tiles of pairs that did not turn stay as they are. Static shared memory: 25 KiB.
__global__ void __launch_bounds__(kTurnThreads) spectrum_turn_kernel(SpectrumWork w, int sweep, int round) {
    STATIC_SMEM(tile, PairTile);
    STATIC_SMEM(left, PairTile);
    STATIC_SMEM(right, PairTile);
    if (w.is_done(sweep)) return;
    const int pairs = w.P / kPair, below = pairs * (pairs - 1) / 2, i = int(blockIdx.x);
    const bool of_matrix = i < below;
    const Meeting at = of_matrix ? tile_below(i) : Meeting{(i - below) % pairs, (i - below) / pairs};  // q, p
    const bool left_turns = of_matrix && w.turned[at.second] > 0, right_turns = w.turned[at.first] > 0;
    if (!left_turns && !right_turns) return;
    const Meeting columns = meeting_of(round, at.first, w.P / 16);
    const Meeting rows = of_matrix ? meeting_of(round, at.second, w.P / 16) : Meeting{2 * at.second, 2 * at.second + 1};
    double* const from = of_matrix ? w.matrix : w.basis;
    const auto place = [&](int r, int c) { return int64_t{pair_column(rows, r)} * w.P + pair_column(columns, c); };
    for_each_element([&](int r, int c) {
        tile[r][c] = from[place(r, c)];
        if (left_turns) left[r][c] = w.turns[int64_t{at.second} * kPair * kPair + r * kPair + c];
        if (right_turns) right[r][c] = w.turns[int64_t{at.first} * kPair * kPair + r * kPair + c];
    });
    __syncthreads();
    if (right_turns) {
        TileProduct product;
        product.add<false>(tile, right);
        __syncthreads();  // all have read the tile
        product.store(tile);
        __syncthreads();
    }
    if (left_turns) {
        TileProduct product;
        product.add<true>(left, tile);
        __syncthreads();
        product.store(tile);
        __syncthreads();
    }
    for_each_element([&](int r, int c) {
        from[place(r, c)] = tile[r][c];
        if (of_matrix) w.matrix[int64_t{pair_column(columns, r)} * w.P + pair_column(rows, c)] = tile[c][r];
    });
}

/// out = a b, or a' b and its mirror image, which is to be symmetric; all (P, P). grid: tiles, or those on and below
/// the diagonal.
template <bool kSymmetric>
__global__ void __launch_bounds__(kTurnThreads)
    spectrum_product_kernel(const double* a, const double* b, int P, double* out) {
    STATIC_SMEM(left, PairTile);
    STATIC_SMEM(right, PairTile);
    const int tiles = P / kPair, i = int(blockIdx.x);
    const Meeting below = tile_below(i);  // of tiles + 1 rows of tiles, the first of which is left out
    const int row0 = kPair * (kSymmetric ? below.second - 1 : i / tiles);
    const int column0 = kPair * (kSymmetric ? below.first : i % tiles);
    TileProduct product;
    for (int k0 = 0; k0 < P; k0 += kPair) {
        for_each_element([&](int r, int c) {
            left[r][c] = a[int64_t{(kSymmetric ? k0 : row0) + r} * P + (kSymmetric ? row0 : k0) + c];
            right[r][c] = b[int64_t{k0 + r} * P + column0 + c];
        });
        __syncthreads();
        product.add<kSymmetric>(left, right);
        __syncthreads();
    }
    product.store(left);
    __syncthreads();
    for_each_element([&](int r, int c) {
        if (!kSymmetric || row0 + r >= column0 + c) out[int64_t{row0 + r} * P + column0 + c] = left[r][c];
        if (kSymmetric && row0 + c > column0 + r) out[int64_t{column0 + r} * P + row0 + c] = left[c][r];
    });
}

/// values (D) rising, those that are rounding become 0 (as wals_gpu/backends/host.py has it), and vectors (D, D) in
/// their order, equal ones in that of the matrix; NaN unless G was finite. One block for each 16 columns.
__global__ void __launch_bounds__(kRankThreads)
    spectrum_finish_kernel(SpectrumWork w, double* values, double* vectors) {
    STATIC_SMEM(scratch, double[kRankThreads / 32]);
    STATIC_SMEM(ranks, int[16]);
    const int t = int(threadIdx.x), column = 16 * int(blockIdx.x) + t / 16;
    const auto value = [&](int j) { return w.matrix[int64_t{j} * (w.P + 1)]; };
    double most = 0;
    for (int j = t; j < w.D; j += kRankThreads) most = fmax(most, value(j));
    most = block_reduce<kRankThreads / 32>(most, [](double a, double b) { return fmax(a, b); }, scratch);
    const bool finite = *w.rounding * 0 == 0;
    const double own = column < w.D ? value(column) : 0.0;
    int rank = 0;
    for (int j = t % 16; j < w.D; j += 16) {
        const double other = value(j);
        rank += (finite ? other < own || (other == own && j < column) : j < column) ? 1 : 0;
    }
    rank = warp_reduce<16>(rank, Sum());
    if (t % 16 == 0) {
        ranks[t / 16] = rank;
        if (column < w.D) values[rank] = !finite ? nan("") : own > w.D * 0x1p-52 * most ? own : 0.0;
    }
    __syncthreads();
    for (int i = t; i < 16 * w.D; i += kRankThreads) {
        const int row = i / 16, j = 16 * int(blockIdx.x) + i % 16;
        if (j < w.D) vectors[int64_t{row} * w.D + ranks[i % 16]] = finite ? w.basis[int64_t{row} * w.P + j] : nan("");
    }
}

}  // namespace wals::cuda
