// Approximate solves of rows that are too long for one block: blocks sum slices of a row's entries into slots of a
// workspace, then one block a row adds the slots in order and does what the one-block kernels do between their passes.
// How a row is cut depends on its length alone (GramSlice, SlicedRow), so results do not depend on what runs when.
#pragma once

#include "solve_iterative.cuh"

namespace wals::cuda {

/// A slot of conjugate gradients, (P) each: a slice's sums, and of the row's first slot also its state between kernels.
struct CgSlot {
    float *sum, *square, *residual, *direction, *diagonal;
    CgState* state;
    WALS_HOST_DEVICE static constexpr int64_t floats(int64_t P) { return 5 * P + 16; }
    __device__ __forceinline__ CgSlot(float* workspace, int64_t slot, int P) {
        sum = workspace + slot * floats(P);
        square = sum + P;
        residual = square + P;
        direction = residual + P;
        diagonal = direction + P;
        state = reinterpret_cast<CgState*>(diagonal + P);
    }
};

/// One pass of conjugate gradients over slices, a block each; `first`: the pass that also sums the diagonal.
/// Shared memory and barriers as cg_pass. Cost: 4 n D flops and a gather of n D floats. Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(32 * kCgWarps, S::kBlocks)
    cg_slices_kernel(RotatedRows p, const GramSlice* slices, float* workspace, bool first) {
    Carver carve(dynamic_smem());
    const CgMemory<S> m(carve, p.P, 0);
    const GramSlice slice = slices[blockIdx.x];
    const CgSlot own(workspace, slice.slot, p.P), of_row(workspace, slice.first_slot, p.P);
    if (!first && !(of_row.state->rho > 0)) return;  // the row has ended
    const int n = int(slice.end - slice.begin);
    for (int j = int(threadIdx.x); j < p.P; j += 32 * kCgWarps) m.product[j] = m.diagonal[j] = 0;
    if (first)
        cg_pass<S, true>(p, slice.begin, n, 0, m, p.z + int64_t{slice.row} * p.P, m.product);
    else
        cg_pass<S, false>(p, slice.begin, n, 0, m, of_row.direction, m.product);
    for (int j = int(threadIdx.x); j < p.P; j += 32 * kCgWarps) {
        own.sum[j] = m.product[j];
        if (first) own.square[j] = m.diagonal[j];
    }
}

/// What comes between two passes, one block a row; `first` and `last`: the passes of that name are just behind.
__global__ void __launch_bounds__(32 * kCgWarps, 2)
    cg_join_kernel(RotatedRows p, const SlicedRow* rows, float* workspace, bool first, bool last, float tolerance) {
    Carver carve(dynamic_smem());
    const CgVectors m(carve, p.P);
    const SlicedRow r = rows[blockIdx.x];
    const CgSlot first_slot(workspace, r.slot, p.P);
    const auto each = [&](auto&& f) {
        for (int j = int(threadIdx.x); j < p.P; j += 32 * kCgWarps) f(j);
    };
    CgRow cg(p, m, r.row);
    cg.begin();
    if (first) {
        each([&](int j) {
            for (int s = 0; s < r.n_slots; ++s) {
                const CgSlot slot(workspace, r.slot + s, p.P);
                m.residual[j] += slot.sum[j];
                m.diagonal[j] += slot.square[j];
            }
        });
        cg.start(tolerance);
    } else {
        cg.state = *first_slot.state;
        each([&](int j) {
            m.residual[j] = first_slot.residual[j];
            m.direction[j] = first_slot.direction[j];
            m.diagonal[j] = first_slot.diagonal[j];
        });
        if (cg.state.rho > 0) {
            cg.multiply_base();
            each([&](int j) {
                for (int s = 0; s < r.n_slots; ++s) m.product[j] += CgSlot(workspace, r.slot + s, p.P).sum[j];
            });
            cg.advance();
        }
    }
    if (!cg.is_active()) cg.state.rho = 0;
    __syncthreads();
    if (last) {
        cg.finish();
        return;
    }
    each([&](int j) {
        first_slot.residual[j] = m.residual[j];
        first_slot.direction[j] = m.direction[j];
        first_slot.diagonal[j] = m.diagonal[j];
        p.z[int64_t{r.row} * p.P + j] = m.z[j];
    });
    if (threadIdx.x == 0) *first_slot.state = cg.state;
}

/// Brings the errors of slices up to date with the step before, and sums their part of the system over columns
/// [first, first + width); a block a slice. Cost: n width (width + 16) flops on tensor cores, three times, and 2 n D
/// for the errors the first time, then 2 n width. Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kMost <= 64 ? 3 : 1)
    subspace_slices_kernel(RotatedRows p, const GramSlice* slices, int first, int width, float* errors,
                           float* workspace) {
    Carver carve(dynamic_smem());
    const PrimalMemory<S> m(carve);
    const GramSlice slice = slices[blockIdx.x];
    if (p.status[slice.row]) return;  // to be solved exactly
    if (first == 0)
        for_each_score<S::kWarps>(p, slice.begin, slice.end, 0, p.P, p.z + int64_t{slice.row} * p.P,
                                  [&](int64_t e, float dot) { errors[e] = p.terms.rhs[e] - p.terms.gram(e) * dot; });
    else
        for_each_score<S::kWarps>(p, slice.begin, slice.end, first - width, width,
                                  GramSlot(workspace, slice.first_slot, width).more,
                                  [&](int64_t e, float dot) { errors[e] -= p.terms.gram(e) * dot; });
    const int count = min(width, p.P - first);
    const TriangleTiles<S> tiles = sum_primal(p, slice.row, slice.begin, slice.end, first, count, errors, m);
    const GramSlot slot(workspace, slice.slot, width);
    store_matrix(tiles, slot.tiles, 1.0f / *m.scale, 1.0f, nullptr);
    for (int j = int(threadIdx.x); j < count; j += S::kThreads) slot.rhs[j] = m.rhs[j];
}

/// Adds the slots in order, solves columns [first, first + width) and moves p.z; one block a row. The matrix is in
/// shared memory, or of a PanelShape in the row's first slot.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kMost <= 64 ? 3 : 1)
    subspace_join_kernel(RotatedRows p, const SlicedRow* rows, int first, int width, float* workspace) {
    Carver carve(dynamic_smem());
    const PrimalMemory<S> m(carve);
    const SlicedRow r = rows[blockIdx.x];
    const int t = int(threadIdx.x), count = min(width, p.P - first), strips = count / 16;
    if (p.status[r.row]) return;
    float* const z = p.z + int64_t{r.row} * p.P;
    const GramSlot own(workspace, r.slot, width);
    float* const tiles = S::kHoldsMatrix ? m.tiles() : own.tiles;
    for (int i = t; i < 256 * int(tile_index(strips, 0)); i += S::kThreads) {
        float sum = 0;
        for (int s = 0; s < r.n_slots; ++s) sum += GramSlot(workspace, r.slot + s, width).tiles[i];
        tiles[i] = sum;
    }
    if (t == 0) *m.bad = 0;
    __syncthreads();
    for (int j = t; j < count; j += S::kThreads) {
        const float base = base_at(p, r.row, first + j);
        float& d = tiles[256 * tile_index(j / 16, j / 16) + tile_place(j % 16, j % 16)];
        m.diagonal[j] = d += base;
        float sum = prior_pull(p, r.row, first + j) - base * z[first + j];
        for (int s = 0; s < r.n_slots; ++s) sum += GramSlot(workspace, r.slot + s, width).rhs[j];
        m.rhs[j] = sum;
    }
    __syncthreads();
    float* const inverse = S::kHoldsMatrix ? m.inverse() : own.inverse;
    const int status = solve_matrix<S::kWarps>(tiles, inverse, strips, min(count, p.D - first), m);
    if (status) {
        if (t == 0) p.status[r.row] = status;
        return;
    }
    for (int j = t; j < count; j += S::kThreads) {
        own.more[j] = p.relaxation * m.out[j];
        z[first + j] += own.more[j];
    }
    __syncthreads();
    if (first + width >= p.P) finish_row<S::kWarps>(p, r.row, 0, m.scratch, [&](int j) { return z[j]; });
}

}  // namespace wals::cuda
