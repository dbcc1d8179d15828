// Exact solve of rows, in the basis where the shared part of every row system is diagonal (as
// csrc/cpu/solve_exact-inl.h; reference.solve_rows defines the result). With B = g diag(spectrum) + lambda I, R the
// table rows of the entries, a their Gram and rho their right-hand coefficients, q = lambda prior:
//
//   diagonal  all a = 0: z = B^-1 (q + R' rho)
//   primal    (B + R' diag(a) R) z = R' rho + q
//   dual      all a of one sign s: S = diag(sqrt|a|) R B^-1/2, (I + s S S') w = rho / sqrt|a| - s S B^-1/2 q,
//             z = B^-1 q + B^-1/2 S' w; the rho of any entry may as well be part of q, which becomes q + rho r
//
// The host chooses the form of each row and hands every kernel the rows of one form and size. A row whose system in
// float32 has a pivot below limits::pivot_tolerance_float32 is marked, and solved anew in float64 by solve_wide_kernel.
#pragma once

#include "rows.cuh"

namespace wals::cuda {

constexpr int kDiagonalWarps = 4;

struct DiagonalMemory {
    float *sums, *scratch, *out;
    __host__ __device__ DiagonalMemory(Carver& carve, int P) {
        sums = carve.take<float>(4 * 32 * kDiagonalWarps);
        scratch = carve.take<float>(kDiagonalWarps);
        out = carve.take<float>(P);
    }
};

/// Rows of which all Gram coefficients are 0, or that have no entries: z = B^-1 (q + R' rho), one block a row.
/// A row without entries has its prior (or 0) where B is 0. Cost: the gather, n D floats. Not yet run on a device.
__global__ void __launch_bounds__(32 * kDiagonalWarps) solve_diagonal_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const DiagonalMemory m(carve, p.P);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row], n = p.terms.row_ptr[row + 1] - begin;
    weighted_sum<32 * kDiagonalWarps>(
        p, begin, n, [&](int64_t i) { return p.terms.rhs[begin + i]; }, m.sums,
        [&](int j, float sum) { m.out[j] = sum; });
    float singular = 0;  // first column, from 1, that nothing determines
    for (int j = p.D - 1 - int(threadIdx.x); j >= 0; j -= 32 * kDiagonalWarps)
        if (n > 0 && !(base_at(p, row, j) > 0)) singular = float(j + 1);
    singular = block_reduce<kDiagonalWarps>(singular, Max(), m.scratch);
    finish_row<kDiagonalWarps>(p, row, int(singular), m.scratch, [&](int j) {
        const float b = base_at(p, row, j);
        if (b > 0) return (prior_pull(p, row, j) + m.out[j]) / b;
        return p.prior ? p.prior[row * p.P + j] : 0.0f;
    });
}

/// Rows in the primal form, padded(D) <= S::kMost, one block a row; any signs.
/// Cost: n D (D + 16) + D^3 / 3 flops, three times that on tensor cores, and a gather of n D floats.
/// Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) solve_primal_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const PrimalMemory<S> m(carve);
    const auto row = [&] { return int64_t{rows[blockIdx.x]}; };  // read where needed: registers are scarce
    for (int j = int(threadIdx.x); j < p.P; j += S::kThreads) m.diagonal[j] = base_at(p, row(), j);
    const int status = solve_primal<S>(p, row(), 0, p.P, nullptr, m, [&](int j) { return prior_pull(p, row(), j); });
    finish_row<S::kWarps>(p, row(), status, m.scratch, [&](int j) { return m.out[j]; });
}

/// Shared memory of a row of at most S::kMost entries in the dual form. 62 KiB for 128 entries and D = 128.
template <class S>
struct DualMemory {
    static constexpr int kTileBytes = PrimalMemory<S>::kTileBytes;
    static constexpr int kPanelBytes = PanelMemory<S, true>::kBytes;
    unsigned char* region;
    float *base_scale, *entry_weight, *rhs, *diagonal, *out, *scratch;
    int32_t* table_row;
    int *firsts, *bad;
    __host__ __device__ DualMemory(Carver& carve, int P) {
        region = carve.take<unsigned char>(kTileBytes > kPanelBytes ? kTileBytes : kPanelBytes);
        base_scale = carve.take<float>(P);
        entry_weight = carve.take<float>(S::kMost);
        table_row = carve.take<int32_t>(S::kMost);
        rhs = carve.take<float>(S::kMost);
        diagonal = carve.take<float>(S::kMost);
        out = carve.take<float>(S::kMost);
        scratch = carve.take<float>(S::kWarps);
        firsts = carve.take<int>(S::kWarps);
        bad = carve.take<int>(1);
    }
    __device__ __forceinline__ float* tiles() const { return reinterpret_cast<float*>(region); }
    __device__ __forceinline__ float* inverse() const { return tiles() + 256 * S::kTiles; }
};

/// Rows in the dual form, n <= S::kMost, all Gram coefficients of one sign or zero, one block a row; any D.
/// A row whose B spans more than limits::dual_base_span is marked for float64. Cost: n (n + 16) D + n^3 / 3 flops,
/// three times that on tensor cores, and two gathers of n D floats, the second from L2. Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) solve_dual_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const DualMemory<S> m(carve, p.P);
    const int t = int(threadIdx.x);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row];
    const int n = int(p.terms.row_ptr[row + 1] - begin);
    float* const shift = p.z + row * p.P;  // B^-1/2 q, kept where the solution will be
    if (!(base_at(p, row, 0) > float(limits::dual_base_span) * base_at(p, row, p.D - 1))) {
        if (t == 0) p.status[row] = 1;
        return;
    }
    float most = 0, bound_sum = 0;
    for (int j = t; j < p.P; j += S::kThreads) {
        m.base_scale[j] = j < p.D ? rsqrtf(base_at(p, row, j)) : 0.0f;
        shift[j] = prior_pull(p, row, j);
        const float bound = m.base_scale[j] * p.column_max[j];
        most = fmaxf(most, bound);
        bound_sum += bound * bound;
    }
    most = block_reduce<S::kWarps>(most, Max(), m.scratch);
    bound_sum = block_reduce<S::kWarps>(bound_sum, Sum(), m.scratch);
    const float bound = p.gram_bound[row], sign = bound < 0 ? -1.0f : 1.0f;
    const float scale = scale_for(most * sqrtf(fabsf(bound))), unscale = 1.0f / scale;
    // An entry whose row of S is no longer than 1 goes into q: rho / sqrt|a| would grow beyond all bounds with a -> 0.
    const auto is_loose = [&](float a) { return fabsf(a) * bound_sum <= 1; };
    float loose = 0;
    for (int i = t; i < S::kMost; i += S::kThreads) {
        const float a = i < n ? p.terms.gram(begin + i) : 0.0f, rho = i < n ? p.terms.rhs[begin + i] : 0.0f;
        const float root = sqrtf(fabsf(a));
        m.entry_weight[i] = root * scale;
        m.table_row[i] = i < n ? p.terms.col_idx[begin + i] : 0;
        m.rhs[i] = is_loose(a) ? 0.0f : rho / root;
        m.diagonal[i] = 1;
        if (is_loose(a) && rho != 0) loose = 1;
    }
    loose = block_reduce<S::kWarps>(loose, Max(), m.scratch);
    if (loose != 0)
        weighted_sum<S::kThreads>(
            p, begin, n, [&](int64_t i) { return is_loose(p.terms.gram(begin + i)) ? p.terms.rhs[begin + i] : 0.0f; },
            m.tiles(), [&](int j, float sum) { shift[j] += sum; });
    const bool shifted = p.prior || loose != 0;
    for (int j = t; j < p.P; j += S::kThreads) shift[j] *= m.base_scale[j];
    __syncthreads();
    const int strips = (n + 15) / 16;
    TriangleTiles<S> tiles(m.firsts, strips);
    dual_gram<S>(p, n, m.table_row, m.entry_weight, m.base_scale, shifted ? shift : nullptr, m.out,
                 PanelMemory<S, true>{m.region}, tiles);
    store_matrix(tiles, m.tiles(), unscale, sign, m.diagonal);
    if (shifted)
        for (int i = t; i < n; i += S::kThreads) m.rhs[i] -= sign * unscale * m.out[i];
    if (t == 0) *m.bad = 0;
    __syncthreads();
    const int status = solve_matrix<S::kWarps>(m.tiles(), m.inverse(), strips, 16 * strips, m);
    weighted_sum<S::kThreads>(
        p, begin, n, [&](int64_t i) { return unscale * m.entry_weight[i] * m.out[i]; }, m.tiles(),
        [&](int j, float sum) { shift[j] = m.base_scale[j] * (shift[j] + m.base_scale[j] * sum); });
    finish_row<S::kWarps>(p, row, status, m.scratch, [&](int j) { return shift[j]; });
}

// Rows that need more than one block, or more than shared memory: their matrices are in a workspace.

/// A slot: the tiles of the matrix, the inverses of its diagonal tiles, the right-hand side.
WALS_HOST_DEVICE constexpr int64_t slot_floats(int64_t P) {
    const int64_t strips = P / 16;
    return (strips * (strips + 1) / 2 + strips) * 256 + P;
}

using SliceShape = PanelShape<256, 16, kDepth>;   // a warp has 4 of the 64 tiles of a block
using SmallSliceShape = PanelShape<256, 16, 16>;  // for devices with less than 110 KiB of shared memory; the same bits

/// sum of a r r' and of rho r over slices, in the primal form. grid: (blocks of 128 x 128 on and below the diagonal,
/// slices). A warp owns 16 x 64 of its block; a block off the diagonal reads two stretches of columns.
/// Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    gram_slices_kernel(RotatedRows p, const GramSlice* slices, float* workspace) {
    Carver carve(dynamic_smem());
    const PrimalMemory<S> m(carve);
    const GramSlice slice = slices[blockIdx.y];
    const TilePosition block = TilePosition::of(int(blockIdx.x));
    const int strips = p.P / 16, row0 = 8 * block.row, column0 = 8 * block.column;
    const bool on_diagonal = block.row == block.column;
    float most = 0;
    for (int j = int(threadIdx.x); j < p.P; j += S::kThreads) most = fmaxf(most, p.column_max[j]);
    most = block_reduce<S::kWarps>(most, Max(), m.scratch);
    const float bound = p.gram_bound[slice.row];
    if (threadIdx.x == 0) *m.scale = scale_for(most * sqrtf(fabsf(bound)));
    const StripPosition first{warp_index() / 2, warp_index() % 2 * 4 + (on_diagonal ? 0 : 8)};
    GramTiles<4, StripPosition> tiles(m.firsts, first, on_diagonal ? min(max(first.row - first.column + 1, 0), 4) : 4);
    const Columns columns = on_diagonal ? Columns(16 * row0, 128) : Columns(16 * row0, 128, 16 * column0, 128);
    primal_gram<S>(p, slice.begin, slice.end, columns, m.scale, bound < 0, nullptr, m.entries,
                   PanelMemory<S, false>{m.region}, tiles, m.rhs);
    float* const slot = workspace + int64_t{slice.slot} * slot_floats(p.P);
    const float unscale = 1.0f / *m.scale;
    tiles.for_each_pair([&](auto at, int i, int j, float x, float y) {
        const int row = row0 + at.row, column = on_diagonal ? column0 + at.column : column0 + at.column - 8;
        if (row >= strips || column > row) return;
        st<float2>(slot + 256 * tile_index(row, column) + tile_place(i, j),
                   make_float2(x * unscale * unscale, y * unscale * unscale));
    });
    float* const rhs = slot + slot_floats(p.P) - p.P;
    if (on_diagonal)
        for (int j = int(threadIdx.x); j < 128 && 16 * row0 + j < p.P; j += S::kThreads) rhs[16 * row0 + j] = m.rhs[j];
}

/// Adds the slots of each row in order. grid: (parts, rows).
__global__ void __launch_bounds__(256) sum_slices_kernel(const SlicedRow* rows, int64_t slot_size, float* workspace) {
    const SlicedRow r = rows[blockIdx.y];
    float* const slot = workspace + int64_t{r.slot} * slot_size;
    for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < slot_size && r.n_slots > 1;
         i += int64_t{gridDim.x} * 256) {
        float sum = slot[i];
        for (int64_t s = 1; s < r.n_slots; ++s) sum += slot[s * slot_size + i];
        slot[i] = sum;
    }
}

struct SlotMemory {
    float *rhs, *diagonal, *out, *scratch;
    int* bad;
    __host__ __device__ SlotMemory(Carver& carve, int P) {
        rhs = carve.take<float>(P);
        diagonal = carve.take<float>(P);
        out = carve.take<float>(P);
        scratch = carve.take<float>(SliceShape::kWarps);
        bad = carve.take<int>(1);
    }
};

/// Solves rows whose sums are in the workspace, one block a row; the matrix stays in global memory (L2).
/// Not yet run on a device.
__global__ void __launch_bounds__(SliceShape::kThreads, 1)
    solve_slots_kernel(RotatedRows p, const SlicedRow* rows, float* workspace) {
    constexpr int kWarps = SliceShape::kWarps;
    Carver carve(dynamic_smem());
    const SlotMemory m(carve, p.P);
    const SlicedRow r = rows[blockIdx.x];
    const int strips = p.P / 16;
    float* const slot = workspace + int64_t{r.slot} * slot_floats(p.P);
    float* const inverse = slot + 256 * tile_index(strips, 0);
    const float* const rhs = inverse + 256 * strips;
    for (int j = int(threadIdx.x); j < p.P; j += SliceShape::kThreads) {
        float& d = slot[256 * tile_index(j / 16, j / 16) + tile_place(j % 16, j % 16)];
        m.diagonal[j] = d += base_at(p, r.row, j);
        m.rhs[j] = rhs[j] + prior_pull(p, r.row, j);
    }
    if (threadIdx.x == 0) *m.bad = 0;
    __syncthreads();
    const int status = solve_matrix<kWarps>(slot, inverse, strips, p.D, m);
    finish_row<kWarps>(p, r.row, status, m.scratch, [&](int j) { return m.out[j]; });
}

constexpr int kWideThreads = 256;

struct WideMemory {
    double *rhs, *column;
    float* scratch;
    int* bad;
    __host__ __device__ WideMemory(Carver& carve, int P) {
        rhs = carve.take<double>(P);
        column = carve.take<double>(P);
        scratch = carve.take<float>(kWideThreads / 32);
        bad = carve.take<int>(1);
    }
};

/// Whether background and ridge leave a direction, the weakest, to the row's entries alone.
__device__ __forceinline__ bool may_be_undetermined(const RotatedRows& p, int64_t row) {
    const auto base = [&](int j) {
        return double(p.terms.background[row]) * p.spectrum[j] + double(p.terms.ridge[row]);
    };
    return p.terms.row_ptr[row] < p.terms.row_ptr[row + 1] && base(0) < limits::undetermined_base * base(p.D - 1);
}

/// The first coordinate, counted from 1, on which neither background and ridge nor entries act but for the rounding of
/// the rotation, or 0: as in csrc/cpu/solve_exact-inl.h, pivots do not show it. By a whole block; ends with a barrier.
__device__ __forceinline__ int undetermined(const RotatedRows& p, int64_t row, const WideMemory& m) {
    const auto base = [&](int j) {
        return double(p.terms.background[row]) * p.spectrum[j] + double(p.terms.ridge[row]);
    };
    if (!may_be_undetermined(p, row)) return 0;
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    for (int j = int(threadIdx.x); j < p.D; j += kWideThreads) {
        double sum = base(j);
        for (int64_t e = begin; e < end; ++e) {
            const double r = double(p.table[int64_t{p.terms.col_idx[e]} * p.P + j]);
            sum += fabs(double(p.terms.gram(e))) * r * r;
        }
        m.column[j] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int found = 0;
        double largest = 0;
        for (int j = p.D - 1; j >= 0 && !found; --j) {  // the weakest at last
            largest = fmax(largest, m.column[j]);
            if (m.column[j] < limits::undetermined_diagonal * largest) found = j + 1;
        }
        *m.bad = found;
    }
    __syncthreads();
    const int found = *m.bad;
    __syncthreads();
    return found;
}

/// Lists the rows that were not solved, in any order; those with an undetermined coordinate, looked for if `search`,
/// get their status first. Where *before is not 0, no row is listed, and all have a status. A block has kWideThreads
/// rows. Cost: a few numbers a row, and where there may be such a coordinate the row's gather. Not yet run on a device.
__global__ void __launch_bounds__(kWideThreads)
    review_kernel(RotatedRows p, bool search, const int32_t* before, int32_t* list, int32_t* count) {
    Carver carve(dynamic_smem());
    const WideMemory m(carve, p.P);
    STATIC_SMEM(suspects, unsigned char[kWideThreads]);
    const int64_t row0 = int64_t{blockIdx.x} * kWideThreads, row = row0 + threadIdx.x;
    const bool real = row < p.terms.n_rows;
    if (before && *before) {
        if (real) p.status[row] = -1;
        return;
    }
    const bool suspect = search && real && may_be_undetermined(p, row);
    suspects[threadIdx.x] = suspect;
    if (__syncthreads_or(suspect)) {
        for (int i = 0; i < kWideThreads; ++i) {
            if (!suspects[i]) continue;
            const int found = undetermined(p, row0 + i, m);
            if (threadIdx.x == 0 && found) p.status[row0 + i] = found;
        }
        __syncthreads();
    }
    if (real && p.status[row]) list[atomicAdd(count, 1)] = int32_t(row);
}

/// One row in float64 from the float32 table: primal, unblocked, its matrix a (D, D) in the workspace, then (D). Status
/// k: pivot k is not positive to float64's digits. By a whole block.
__device__ __forceinline__ void solve_wide_row(const RotatedRows& p, int64_t row, const WideMemory& m, double* a) {
    const int t = int(threadIdx.x), D = p.D;
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    double* const diagonal = a + int64_t{D} * D;  // before elimination
    if (const int found = undetermined(p, row, m)) {
        if (t == 0) p.status[row] = found;
        return;
    }
    for (int j = t; j < D; j += kWideThreads) {
        double sum = p.prior ? double(p.terms.ridge[row]) * double(p.prior[row * p.P + j]) : 0.0;
        for (int64_t e = begin; e < end; ++e)
            sum += double(p.terms.rhs[e]) * double(p.table[int64_t{p.terms.col_idx[e]} * p.P + j]);
        m.rhs[j] = sum;
    }
    for (int i = 0; i < D; ++i)
        for (int j = t; j <= i; j += kWideThreads) {
            double sum = i == j ? double(p.terms.background[row]) * p.spectrum[j] + double(p.terms.ridge[row]) : 0.0;
            for (int64_t e = begin; e < end; ++e) {
                const float* const r = p.table + int64_t{p.terms.col_idx[e]} * p.P;
                sum += double(p.terms.gram(e)) * double(r[i]) * double(r[j]);
            }
            a[int64_t{i} * D + j] = sum;
            if (i == j) diagonal[i] = sum;
        }
    if (t == 0) *m.bad = 0;
    __syncthreads();
    for (int k = 0; k < D; ++k) {
        const double pivot = a[int64_t{k} * D + k];
        if (t == 0 && *m.bad == 0 && !(pivot > limits::pivot_tolerance_float64 * diagonal[k])) *m.bad = k + 1;
        const double root = sqrt(pivot), y = m.rhs[k] / root;
        for (int i = k + t; i < D; i += kWideThreads) m.column[i] = a[int64_t{i} * D + k] / root;
        __syncthreads();
        for (int i = k + 1 + t; i < D; i += kWideThreads) m.rhs[i] -= m.column[i] * y;
        for (int i = k + 1; i < D; ++i)
            for (int j = k + 1 + t; j <= i; j += kWideThreads) a[int64_t{i} * D + j] -= m.column[i] * m.column[j];
        for (int i = k + t; i < D; i += kWideThreads) a[int64_t{i} * D + k] = m.column[i];
        if (t == 0) m.rhs[k] = y;
        __syncthreads();
    }
    for (int k = D - 1; k >= 0; --k) {
        const double x = m.rhs[k] / a[int64_t{k} * D + k];
        for (int j = t; j < k; j += kWideThreads) m.rhs[j] -= a[int64_t{k} * D + j] * x;
        __syncthreads();
        if (t == 0) m.rhs[k] = x;
        __syncthreads();
    }
    finish_row<kWideThreads / 32>(p, row, *m.bad, m.scratch, [&](int j) { return float(m.rhs[j]); });
}

/// The *count rows of a list that float32 could not solve, each by one of the grid's blocks; those that float64 cannot
/// solve either are counted in *failed. Where nothing is finite there is nothing to solve. Slow, and meant for few
/// rows.
__global__ void __launch_bounds__(kWideThreads)
    solve_wide_kernel(RotatedRows p, const int32_t* list, const int32_t* count, double* workspace, int32_t* failed) {
    Carver carve(dynamic_smem());
    const WideMemory m(carve, p.P);
    double* const a = workspace + int64_t{blockIdx.x} * (int64_t{p.D} * p.D + p.D);
    const bool finite = p.spectrum[p.D - 1] * 0 == 0;
    for (int64_t i = blockIdx.x, n = *count; i < n; i += gridDim.x) {
        const int64_t row = list[i];
        if (finite) solve_wide_row(p, row, m, a);
        if (threadIdx.x == 0 && p.status[row]) atomicAdd(failed, 1);
        __syncthreads();
    }
}

}  // namespace wals::cuda
