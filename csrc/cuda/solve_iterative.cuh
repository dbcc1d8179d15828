// Approximate solves of rows, in the same rotated basis as solve_exact.cuh and from the rows' present factors:
// conjugate gradients and subspace steps (as csrc/cpu/solve_iterative-inl.h). Neither raises a row's part of the loss.
#pragma once

#include <cfloat>

#include "rows.cuh"

namespace wals::cuda {

constexpr int kCgWarps = 8;

/// How a warp reads table rows: kLanes lanes share a row, each with kVectors times four columns, so 32 / kLanes entries
/// go at once.
template <int Lanes, int Vectors>
struct RowShape {
    static constexpr int kLanes = Lanes, kVectors = Vectors;
    static constexpr int kTogether = 32 / Lanes;          // entries of a warp
    static constexpr int kParts = kCgWarps * kTogether;   // entries of the block
    static constexpr int kBlocks = Vectors <= 2 ? 3 : 1;  // on an SM, as far as registers go
};

/// Vectors of a row's system, (P) each.
struct CgVectors {
    float *base, *residual, *direction, *product, *diagonal, *z, *scratch;
    __host__ __device__ CgVectors(Carver& carve, int P) {
        base = carve.take<float>(P);
        residual = carve.take<float>(P);
        direction = carve.take<float>(P);
        product = carve.take<float>(P);
        diagonal = carve.take<float>(P);
        z = carve.take<float>(P);
        scratch = carve.take<float>(kCgWarps);
    }
};

/// `staged` rows of the row's panel stay in shared memory from the first pass on; the others are read again.
template <class S>
struct CgMemory : CgVectors {
    float *parts, *panel;
    __host__ __device__ CgMemory(Carver& carve, int P, int staged) : CgVectors(carve, P) {
        parts = carve.take<float>(size_t(S::kParts) * P);
        panel = carve.take<float>(size_t(staged) * P);
    }
};

/// One pass over the row's entries, r their table rows: sum of (rho - a (r . v)) r and of a r o r where kResidual, else
/// sum of a (r . v) r, added to out (and diagonal). The first pass fills the staged panel, which each lane reads as it
/// wrote it. Barriers: two for each result; the last is the end.
template <class S, bool kResidual>
__device__ __forceinline__ void cg_pass(const RotatedRows& p, int64_t begin, int n, int staged, const CgMemory<S>& m,
                                        const float* v, float* out) {
    const int lane = lane_index(), part = warp_index() * S::kTogether + lane / S::kLanes,
              column0 = lane % S::kLanes * 4;
    float4 x[S::kVectors], sum[S::kVectors], square[S::kVectors];
    const float4 zero = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < S::kVectors; ++i) {
        const int column = column0 + 4 * S::kLanes * i;
        x[i] = column < p.P ? ld4(v + column) : zero;
        sum[i] = square[i] = zero;
    }
    // All lanes of a warp go round equally often: they take part in each other's sums.
    for (int first = 0; first < n; first += S::kParts) {
        const int e = first + part;
        const bool real = e < n, in_panel = e < staged, from_table = real && (kResidual || !in_panel);
        const float* const row = p.table + (from_table ? int64_t{p.terms.col_idx[begin + e]} * p.P : 0);
        float* const kept = m.panel + int64_t{e} * p.P;
        float4 r[S::kVectors];
        float dot = 0;
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) {
            const int column = column0 + 4 * S::kLanes * i;
            r[i] = !real || column >= p.P ? zero : from_table ? ld4(row + column) : ld4(kept + column);
            if (kResidual && real && in_panel && column < p.P) st4(kept + column, r[i]);
            dot += r[i].x * x[i].x + r[i].y * x[i].y + r[i].z * x[i].z + r[i].w * x[i].w;
        }
        dot = warp_reduce<S::kLanes>(dot, Sum());
        const float a = real ? p.terms.gram(begin + e) : 0.0f;
        const float weight = kResidual ? (real ? p.terms.rhs[begin + e] : 0.0f) - a * dot : a * dot;
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) {
            add_scaled(sum[i], weight, r[i]);
            if constexpr (kResidual)
                add_scaled(square[i], a,
                           make_float4(r[i].x * r[i].x, r[i].y * r[i].y, r[i].z * r[i].z, r[i].w * r[i].w));
        }
    }
    auto add_to = [&](const float4(&values)[S::kVectors], float* to) {
#pragma unroll
        for (int i = 0; i < S::kVectors; ++i) {
            const int column = column0 + 4 * S::kLanes * i;
            if (column < p.P) st4(m.parts + part * p.P + column, values[i]);
        }
        __syncthreads();
        for (int j = int(threadIdx.x); j < p.P; j += 32 * kCgWarps) {
            float total = 0;
            for (int i = 0; i < S::kParts; ++i) total += m.parts[i * p.P + j];
            to[j] += total;
        }
        __syncthreads();
    };
    add_to(sum, out);
    if constexpr (kResidual) add_to(square, m.diagonal);
}

/// What conjugate gradients do between their passes, by the whole block; the same thread has the same elements of all
/// vectors. As csrc/cpu/solve_iterative-inl.h.
struct CgState {
    float rho, enough;        // the preconditioned residual's square norm, and what is small enough of it
    float by_data, by_ridge;  // a coordinate moves where its diagonal is above the first, or not above the second
    float in_range;           // 0 where sums have left float32's range
};

class CgRow {
    static constexpr float kRounding = float(limits::cg_rounding_float32);
    static constexpr float kVanishing = float(limits::cg_vanishing_float32);
    const RotatedRows& p_;
    const CgVectors& m_;
    const int64_t row_;

    template <class F>
    __device__ __forceinline__ void each(F&& f) const {
        for (int j = int(threadIdx.x); j < p_.P; j += 32 * kCgWarps) f(j);
    }
    template <class Join, class F>
    __device__ __forceinline__ float reduce(Join join, F&& f) const {
        float all = 0;
        for (int j = int(threadIdx.x); j < p_.P; j += 32 * kCgWarps) all = join(all, f(j));
        return block_reduce<kCgWarps>(all, join, m_.scratch);
    }
    __device__ __forceinline__ float preconditioned(int j) const {
        const float d = m_.diagonal[j];
        return d > state.by_data || d <= state.by_ridge ? m_.residual[j] / d : 0.0f;
    }

   public:
    CgState state;

    __device__ __forceinline__ CgRow(const RotatedRows& p, const CgVectors& m, int64_t row) : p_(p), m_(m), row_(row) {}

    /// Residual and diagonal without the entries' part.
    __device__ __forceinline__ void begin() const {
        each([&](int j) {
            m_.z[j] = p_.z[row_ * p_.P + j];
            m_.base[j] = m_.diagonal[j] = base_at(p_, row_, j);
            m_.residual[j] = prior_pull(p_, row_, j) - m_.base[j] * m_.z[j];
        });
    }
    /// The first direction, once residual and diagonal are whole.
    __device__ __forceinline__ void start(float tolerance) {
        const float largest = reduce(Max(), [&](int j) { return j < p_.D ? m_.diagonal[j] : 0.0f; });
        const float ridge = p_.terms.ridge[row_], rounding = limits::cg_rounding_units * FLT_EPSILON * largest;
        state.by_data = rounding;
        state.by_ridge = limits::cg_small_ridge * ridge > rounding ? limits::cg_ridge_share * ridge : -1.0f;
        each([&](int j) { m_.direction[j] = preconditioned(j); });
        state.rho = reduce(Sum(), [&](int j) { return m_.residual[j] * m_.direction[j]; });
        const float moves = reduce(Max(), [&](int j) { return m_.direction[j] != 0 ? 1.0f : 0.0f; });
        const float least = fmaxf(tolerance, kRounding);
        state.enough = least * least * state.rho;
        const bool finite = not_finite(state.rho + largest) == 0;
        state.in_range = finite && (moves == 0 || state.rho > kVanishing) ? 1.0f : 0.0f;
    }
    __device__ __forceinline__ bool is_active() const { return state.rho > state.enough && state.rho > kVanishing; }
    /// The product without the entries' part.
    __device__ __forceinline__ void multiply_base() const {
        each([&](int j) { m_.product[j] = m_.base[j] * m_.direction[j]; });
    }
    /// A step, once the product is whole; the row is not active any more where that would follow rounding.
    __device__ __forceinline__ void advance() {
        const float curvature = reduce(Sum(), [&](int j) { return m_.direction[j] * m_.product[j]; });
        const float size = reduce(Sum(), [&](int j) { return m_.direction[j] * m_.direction[j] * m_.diagonal[j]; });
        if (!(curvature > limits::cg_least_curvature * kRounding * size)) {
            state.rho = 0;
            return;
        }
        const float length = state.rho / curvature;
        each([&](int j) {
            m_.z[j] += length * m_.direction[j];
            m_.residual[j] -= length * m_.product[j];
        });
        const float next = reduce(Sum(), [&](int j) { return m_.residual[j] * preconditioned(j); });
        const float keep = next / state.rho;
        state.rho = next;
        each([&](int j) { m_.direction[j] = preconditioned(j) + keep * m_.direction[j]; });
    }
    /// To p.z; a row whose sums left the range is marked, and solved exactly by solve_wide_kernel.
    __device__ __forceinline__ void finish() const {
        finish_row<kCgWarps>(p_, row_, state.in_range != 0 ? 0 : -1, m_.scratch, [&](int j) { return m_.z[j]; });
    }
};

/// Preconditioned conjugate gradients on A z = b from and to p.z, one block a row (reference.solve_rows_cg). The
/// preconditioner is the diagonal of A. A row ends after `steps`, or when its preconditioned residual has fallen to
/// `tolerance` of its first norm. Dot products stay within the lanes of a table row; no barrier inside a pass.
/// Cost: (steps + 1) passes of 4 n D flops; one gather of the staged rows, steps + 1 of the others.
/// Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(32 * kCgWarps, S::kBlocks)
    solve_cg_kernel(RotatedRows p, const int32_t* rows, int staged, int steps, float tolerance) {
    Carver carve(dynamic_smem());
    const CgMemory<S> m(carve, p.P, staged);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row];
    const int n = int(p.terms.row_ptr[row + 1] - begin);
    CgRow cg(p, m, row);
    cg.begin();
    __syncthreads();
    cg_pass<S, true>(p, begin, n, staged, m, m.z, m.residual);
    cg.start(tolerance);
    for (int step = 0; step < steps && cg.is_active(); ++step) {
        cg.multiply_base();
        __syncthreads();
        cg_pass<S, false>(p, begin, n, staged, m, m.direction, m.product);
        cg.advance();
    }
    __syncthreads();
    cg.finish();
}

/// errors[e] = add(e, r . v) for the row's entries, r columns [first, first + width) of their table rows, v (width) in
/// shared or global memory; a warp takes an entry. `add` is called by one lane.
template <int kWarps, class Add>
__device__ __forceinline__ void for_each_score(const RotatedRows& p, int64_t begin, int64_t end, int first, int width,
                                               const float* v, Add&& add) {
    for (int64_t e = begin + warp_index(); e < end; e += kWarps) {
        const float* const r = p.table + int64_t{p.terms.col_idx[e]} * p.P + first;
        float dot = 0;
        for (int j = 4 * lane_index(); j < width; j += 128) {
            const float4 a = ld4(r + j), b = ld4(v + j);
            dot += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
        dot = warp_reduce(dot, Sum());
        if (lane_index() == 0) add(e, dot);
    }
}

/// One pass of subspace steps from and to p.z (iALS++, Rendle et al. 2021; reference.solve_rows_subspace), one block a
/// row: blocks of `width` <= S::kMost rotated coordinates are solved exactly in turn with the others fixed. errors (Z):
/// what the row's entries still lack, kept up to date. A row of which a block's system is too close to singular is
/// marked, and solved exactly by solve_wide_kernel. Cost: n D width + D width^2 / 3 + 6 n D flops. Not yet run on a
/// device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kMost <= 64 ? 3 : 1)
    solve_subspace_kernel(RotatedRows p, const int32_t* rows, int width, float* errors) {
    Carver carve(dynamic_smem());
    const PrimalMemory<S> m(carve);
    const int t = int(threadIdx.x);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    float* const z = p.z + row * p.P;
    for_each_score<S::kWarps>(p, begin, end, 0, p.P, z,
                              [&](int64_t e, float dot) { errors[e] = p.terms.rhs[e] - p.terms.gram(e) * dot; });
    for (int first = 0; first < p.P; first += width) {
        const int count = min(width, p.P - first);
        for (int j = t; j < count; j += S::kThreads) m.diagonal[j] = base_at(p, row, first + j);
        __syncthreads();
        const int status = solve_primal<S>(p, row, first, count, errors, m, [&](int j) {
            return prior_pull(p, row, first + j) - base_at(p, row, first + j) * z[first + j];
        });
        if (status) {
            if (t == 0) p.status[row] = status;
            return;
        }
        for (int j = t; j < count; j += S::kThreads) z[first + j] += p.relaxation * m.out[j];
        for_each_score<S::kWarps>(p, begin, end, first, count, m.out,
                                  [&](int64_t e, float dot) { errors[e] -= p.terms.gram(e) * (p.relaxation * dot); });
        __syncthreads();
    }
    finish_row<S::kWarps>(p, row, 0, m.scratch, [&](int j) { return z[j]; });
}

}  // namespace wals::cuda
