// Eigenvalues and eigenvectors of a Gram matrix G (D, D) in float64 (reference: numpy.linalg.eigh): two-sided block
// Jacobi. Nothing of it waits for the host: how many sweeps are needed is decided by a counter in device memory.
//
// G is padded with zeros to P, whole pairs of 16 columns. A sweep is a tournament of the P / 16 blocks of columns: each
// meets each other once, P / 32 pairs in each of P / 16 - 1 rounds (meeting_of). A pair's 32 x 32 matrix is rotated by
// one block in shared memory, each of its 496 elements once, in 31 steps of 16 rotations, whose product Q (32, 32) is
// then applied to the rest: G = Q' G Q, V = V Q. A round is one launch: its pairs need only their own tiles of what the
// round before left to do, and turn these themselves; the rest of that work is done beside them. The order is fixed, so
// results are the same bits each time. Rotations are those of Rutishauser (Numer. Math. 9, 1966), x - s (y + h x) with
// h = tan(angle / 2): errors of a small rotation are small, and V stays orthonormal to a few sqrt(P) roundings.
//
// An element counts while it is above rounding, eps |G|_F. Below the diagonal that leaves at most P eps |G|_F, so
// eigenvalues are within some P eps |G|_F of the true ones, as LAPACK's are; tests hold 2 (D + 8) eps |G|_2 for values,
// residuals and orthogonality, of which less than a third is used. A sweep without a rotation ends it: later launches
// read one number and leave. Sweeps in all, by the same steps in NumPy: 9 to 13 for eigenvalues falling by 10^4 and D =
// 64 to 256, 24 for 10^12, 4 or 5 from the basis of a Gram matrix of which 1 % has changed, or late in a fit of the
// other side's.
//
// Cost: a sweep is P / 16 - 1 launches and 31 times as many dependent steps of rotations, each two reciprocal roots, a
// division and two barriers, some 500 cycles; 8 P^3 flops in float64 (4 for the half of G, 4 for V, in tiles of 32);
// a round reads and writes P^2 numbers of G and of V, in L2. [E], an H100 at 1.7 GHz: a round is 9 us of rotations,
// 3 us for its tile and the launch, and the rest behind them; a sweep 0.09 / 0.18 / 0.37 ms, ten of them 0.9 / 1.8 / 4
// ms at D = 128 / 256 / 512, beside LAPACK's 1.3 / 5.7 / 37 ms [M] on a host that the device waits for. What leaves at
// once costs a launch each: half as much again at D = 128, where a graph of launches helps. cuSOLVER would be the
// library for it: its info goes to the host, torch waits for that, and nothing stands in for it without a device.
//
// Not by whitening, (G + lambda / g I) = L L', where one ratio lambda / g serves all rows: three launches, but only for
// exact solves without prior means or a start, and what to do where L breaks down would be for the host to decide.
//
// Not yet run on a device.
#pragma once

#include "block.cuh"

namespace wals::cuda {

constexpr int kPair = 32;  // columns of two blocks
constexpr int kPairStride = kPair + 1;
constexpr int kMostSweeps = 26;  // most that was seen is 24, see above; beyond, little is left to do
constexpr int kPairThreads = 256, kRankThreads = 256;

/// What the eigenproblem keeps in its workspace: P is D in whole pairs. What a launch reads of the one before it and
/// leaves for the next is there twice; launch n, from 0, reads matrix[n % 2] and the rest of [1 - n % 2].
struct SpectrumWork {
    int D, P, sweeps, rounds;
    double* matrix[2];  // (P, P), in the end diagonal
    double* basis;      // (P, P), eigenvectors in columns
    double* turns[2];   // (P / 32, 32, 32): the pairs' rotations of a round
    double* own[2];     // (P / 32, 32, 32): what their own tiles of the matrix become
    int* turned[2];     // (P / 32): rotations of the pair, 0: it stays as it is, and turns and own are not there
    double* row_norm;   // (P): squares of G's rows
    double* rounding;   // (1): elements up to this are none
    int* rotations;     // (kMostSweeps) of each sweep

    __device__ __forceinline__ bool is_done(int sweep) const { return sweep > 0 && rotations[sweep - 1] == 0; }
    /// Launches that did not leave at once.
    __device__ __forceinline__ int launches() const {
        int sweep = 0;
        while (sweep < sweeps && !is_done(sweep)) ++sweep;
        return sweep * rounds;
    }
};

/// two[which], without a copy of the array in local memory.
template <class T>
__device__ __forceinline__ T* either(T* const (&two)[2], int which) {
    return which ? two[1] : two[0];
}

/// Who meets whom in a round of a tournament of n, n even, in which nobody pauses: 0 <= round < n - 1, k < n / 2.
struct Meeting {
    int first, second;
};
__device__ __forceinline__ Meeting meeting_of(int round, int k, int n) {
    if (k == 0) return {round, n - 1};
    const int a = round + k, b = round - k, i = a < n - 1 ? a : a - (n - 1), j = b >= 0 ? b : b + n - 1;
    return {min(i, j), max(i, j)};
}

/// The k of i in this round, and whether it is the second.
struct Place {
    int k, half;
};
__device__ __forceinline__ Place place_of(int round, int i, int n) {
    if (i == n - 1) return {0, 1};
    const int ahead = i >= round ? i - round : i - round + n - 1, k = min(ahead, n - 1 - ahead);
    return {k, k > 0 && meeting_of(round, k, n).second == i ? 1 : 0};
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
        w.matrix[0][int64_t{i} * w.P + j] = g;
        w.basis[int64_t{i} * w.P + j] = inside && start ? start[int64_t{i} * w.D + j] : i == j ? 1.0 : 0.0;
        sum += g * g;
    }
    sum = block_reduce<kPairThreads / 32>(sum, Sum(), scratch);
    if (threadIdx.x == 0) w.row_norm[i] = sum;
    if (i > 0) return;
    for (int k = int(threadIdx.x); k < w.P / kPair; k += kPairThreads) w.turned[1][k] = 0;
    for (int k = int(threadIdx.x); k < kMostSweeps; k += kPairThreads) w.rotations[k] = 0;
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

using PairTile = double[kPair][kPairStride];

/// A thread's 2 x 2 elements of a product of two tiles in shared memory.
struct TileProduct {
    int row, column;
    double sum[2][2] = {};
    __device__ __forceinline__ TileProduct() : row(int(threadIdx.x) / 16 * 2), column(int(threadIdx.x) % 16 * 2) {}

    /// sum += a b, or a' b.
    template <bool kTransposed>
    __device__ __forceinline__ void add(const PairTile& a, const PairTile& b) {
#pragma unroll 8
        for (int k = 0; k < kPair; ++k) {
            const double x0 = kTransposed ? a[k][row] : a[row][k], x1 = kTransposed ? a[k][row + 1] : a[row + 1][k];
            const double y0 = b[k][column], y1 = b[k][column + 1];
            sum[0][0] += x0 * y0, sum[0][1] += x0 * y1;
            sum[1][0] += x1 * y0, sum[1][1] += x1 * y1;
        }
    }
    __device__ __forceinline__ void store(PairTile& out) const {
        out[row][column] = sum[0][0], out[row][column + 1] = sum[0][1];
        out[row + 1][column] = sum[1][0], out[row + 1][column + 1] = sum[1][1];
    }
};

/// put(row, column) for all elements of a tile, neighbouring threads in a row.
template <class Put>
__device__ __forceinline__ void for_each_element(Put&& put) {
    for (int i = int(threadIdx.x); i < kPair * kPair; i += kPairThreads) put(i / kPair, i % kPair);
}

/// tile = left' tile right, either of which may be missing. By a whole block; barriers around it are the caller's but
/// for one at the end.
__device__ __forceinline__ void turn_tile(PairTile& tile, const PairTile* left, const PairTile* right) {
    if (right) {
        TileProduct product;
        product.add<false>(tile, *right);
        __syncthreads();  // all have read the tile
        product.store(tile);
        __syncthreads();
    }
    if (left) {
        TileProduct product;
        product.add<true>(*left, tile);
        __syncthreads();
        product.store(tile);
        __syncthreads();
    }
}

struct TurnMemory {
    PairTile &s, &v, &u;
    Turn* turns;
};

/// Rotates pair k of a round, at most `repeats` times all of its elements. Its tile is not yet what the round before
/// made of it: the diagonal blocks are in that round's `own`, the one between them is turned here. Barriers: one when a
/// step's 16 rotations are known, one when they are done; threads (p, q), q <= p, own the four elements where pairs p
/// and q of columns meet, and their mirror image.
__device__ __forceinline__ void turn_pair(const SpectrumWork& w, int n, int k, int repeats, const TurnMemory& m) {
    PairTile &s = m.s, &v = m.v, &u = m.u;
    const int t = int(threadIdx.x), p = t / 16, q = t % 16, now = n % 2, blocks = w.P / 16;
    const int round = n % w.rounds, before = (n + w.rounds - 1) % w.rounds;
    const Meeting pair = meeting_of(round, k, blocks);
    const Place place[2] = {place_of(before, pair.first, blocks), place_of(before, pair.second, blocks)};
    const Meeting from[2] = {meeting_of(before, place[0].k, blocks), meeting_of(before, place[1].k, blocks)};
    const bool turned[2] = {either(w.turned, 1 - now)[place[0].k] > 0, either(w.turned, 1 - now)[place[1].k] > 0};
    const auto turn_at = [&](int i, int r, int c) {
        return either(w.turns, 1 - now)[(int64_t{place[i].k} * kPair + r) * kPair + c];
    };
    for_each_element([&](int r, int c) {
        s[r][c] = either(w.matrix, now)[int64_t{pair_column(from[0], r)} * w.P + pair_column(from[1], c)];
        if (turned[0]) u[r][c] = turn_at(0, r, c);
        if (turned[1]) v[r][c] = turn_at(1, r, c);
    });
    __syncthreads();
    turn_tile(s, turned[0] ? &u : nullptr, turned[1] ? &v : nullptr);
    const double between = s[16 * place[0].half + p][16 * place[1].half + q];
    __syncthreads();
    s[p][16 + q] = s[16 + q][p] = between;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int block = i == 0 ? pair.first : pair.second, in_pair = 16 * place[i].half;
        s[16 * i + p][16 * i + q] =
            turned[i] ? either(w.own, 1 - now)[(int64_t{place[i].k} * kPair + in_pair + p) * kPair + in_pair + q]
                      : either(w.matrix, now)[int64_t{16 * block + p} * w.P + 16 * block + q];
    }
    for_each_element([&](int r, int c) { v[r][c] = r == c ? 1.0 : 0.0; });
    __syncthreads();
    const double rounding = *w.rounding;
    int all = 0;
    for (int repeat = 0, last = 1; repeat < repeats && last > 0; ++repeat) {
        last = 0;
        for (int step = 0; step < kPair - 1; ++step) {
            bool turns_now = false;
            if (t < kPair / 2) {
                const Meeting two = meeting_of(step, t, kPair);
                const double o = s[two.first][two.second];
                turns_now = fabs(o) > rounding;
                m.turns[t] = turns_now ? turn_of(s[two.first][two.first], s[two.second][two.second], o) : Turn{0, 0, 0};
            }
            const int rotations = __syncthreads_count(turns_now);
            last += rotations;
            if (rotations == 0) continue;
            const Meeting rows = meeting_of(step, p, kPair), columns = meeting_of(step, q, kPair);
            const Turn left = m.turns[p], right = m.turns[q];
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
        either(w.turned, now)[k] = all;
        if (all > 0) atomicAdd(w.rotations + n / w.rounds, all);
    }
    if (all == 0) return;
    for_each_element([&](int r, int c) {
        either(w.own, now)[(int64_t{k} * kPair + r) * kPair + c] = s[r][c];
        either(w.turns, now)[(int64_t{k} * kPair + r) * kPair + c] = v[r][c];
    });
}

/// Applies the rotations of the round before launch n: tile i of those where its pairs q <= p meet becomes Qp' tile Qq,
/// in the other matrix, with its mirror image; after these, tiles of 32 rows of the basis and pair q become tile Qq.
__device__ __forceinline__ void turn_rest(const SpectrumWork& w, int n, int i, const TurnMemory& m) {
    PairTile& tile = m.s;
    const int now = n % 2, pairs = w.P / kPair, below = pairs * (pairs + 1) / 2;
    const int before = (n + w.rounds - 1) % w.rounds;
    const bool of_matrix = i < below;
    const TilePosition place_in =
        of_matrix ? TilePosition::of(i) : TilePosition{(i - below) / pairs, (i - below) % pairs};
    const Meeting at{place_in.column, place_in.row};  // q, p
    const bool is_own = of_matrix && at.first == at.second, right_turns = either(w.turned, 1 - now)[at.first] > 0;
    const bool left_turns = of_matrix && either(w.turned, 1 - now)[at.second] > 0;
    if (!of_matrix && !right_turns) return;
    const Meeting columns = meeting_of(before, at.first, w.P / 16);
    const Meeting rows =
        of_matrix ? meeting_of(before, at.second, w.P / 16) : Meeting{2 * at.second, 2 * at.second + 1};
    const double* const from = of_matrix ? either(w.matrix, now) : w.basis;
    double* const to = of_matrix ? either(w.matrix, 1 - now) : w.basis;
    const auto place = [&](int r, int c) { return int64_t{pair_column(rows, r)} * w.P + pair_column(columns, c); };
    const auto of_pair = [](int k, int r, int c) { return (int64_t{k} * kPair + r) * kPair + c; };
    for_each_element([&](int r, int c) {
        tile[r][c] = is_own && right_turns ? either(w.own, 1 - now)[of_pair(at.first, r, c)] : from[place(r, c)];
        if (left_turns) m.u[r][c] = either(w.turns, 1 - now)[of_pair(at.second, r, c)];
        if (right_turns) m.v[r][c] = either(w.turns, 1 - now)[of_pair(at.first, r, c)];
    });
    __syncthreads();
    if (!is_own) turn_tile(tile, left_turns ? &m.u : nullptr, right_turns ? &m.v : nullptr);
    for_each_element([&](int r, int c) {
        to[place(r, c)] = tile[r][c];
        if (of_matrix && !is_own) to[int64_t{pair_column(columns, r)} * w.P + pair_column(rows, c)] = tile[c][r];
    });
}

/// Launch n: the pairs of a round, a block each, which take longest, and beside them what the round before left to do.
/// The one after the last, `pairs` 0, does the latter alone. Static shared memory: 26 KiB.
__global__ void __launch_bounds__(kPairThreads, 4) spectrum_turn_kernel(SpectrumWork w, int n, int pairs, int repeats) {
    STATIC_SMEM(s, PairTile);
    STATIC_SMEM(v, PairTile);
    STATIC_SMEM(u, PairTile);
    STATIC_SMEM(turns, Turn[kPair / 2]);
    const TurnMemory m{s, v, u, turns};
    if (pairs > 0 && w.is_done(n / w.rounds)) return;
    if (int(blockIdx.x) < pairs)
        turn_pair(w, n, int(blockIdx.x), repeats, m);
    else
        turn_rest(w, pairs > 0 ? n : w.launches(), int(blockIdx.x) - pairs, m);
}

/// out = a b, or a' b and its mirror image, which is to be symmetric; all (P, P). grid: tiles, or those on and below
/// the diagonal.
template <bool kSymmetric>
__global__ void __launch_bounds__(kPairThreads)
    spectrum_product_kernel(const double* a, const double* b, int P, double* out) {
    STATIC_SMEM(left, PairTile);
    STATIC_SMEM(right, PairTile);
    const int tiles = P / kPair, i = int(blockIdx.x);
    const TilePosition below = TilePosition::of(i);
    const int row0 = kPair * (kSymmetric ? below.row : i / tiles);
    const int column0 = kPair * (kSymmetric ? below.column : i % tiles);
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
    const double* const matrix = either(w.matrix, 1 - w.launches() % 2);
    const auto value = [&](int j) { return matrix[int64_t{j} * (w.P + 1)]; };
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
