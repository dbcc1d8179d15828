// The dense work around the row solves: Gram matrices, rotations, bounds, and the losses.
#pragma once

#include "dense_tile.cuh"
#include "split.cuh"

namespace wals::cuda {

/// partial (slabs, D, D) float64 = sum over a slab of rows of weight y y' (reference: Gram matrix), lower blocks of 64
/// x 64. grid: (blocks on and below the diagonal, slabs). Barriers: each stage has one before and one after it is read.
/// Cost: n D^2 flops in float64. A factor becomes a float64 as it is staged: a conversion takes a multiply-add's place
/// or more (16 a cycle and processor beside 64 on compute capability 8.0 and 9.0), and in the inner loop there would be
/// 12 conversions and products to 16 multiply-adds. Not by split f16 products: their error, 2^-21 |G|, is a matter of
/// the whole matrix and not of its weak directions, where G is often below it; those of a half-sweep are solved in G's
/// basis because they are weak. Not yet run on a device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    gram_kernel(const float* y, int64_t n, int D, Broadcast<float> weight, double* partial) {
    const TilePosition block = TilePosition::of(int(blockIdx.x));
    const int row0 = kDenseTile * block.row, column0 = kDenseTile * block.column;
    double* const out = partial + int64_t{blockIdx.y} * D * D;
    dense_product<double, false, 0>(
        n * blockIdx.y / gridDim.y, n * (blockIdx.y + 1) / gridDim.y,
        [&](int64_t k, int i) { return row0 + i < D ? double(weight[k]) * double(y[k * D + row0 + i]) : 0.0; },
        [&](int64_t k, int j) { return column0 + j < D ? double(y[k * D + column0 + j]) : 0.0; },
        [&](int i, int j, double sum) {
            const int r = row0 + i, c = column0 + j;
            if (r < D && c <= r) out[int64_t{r} * D + c] = sum;
        });
}

constexpr int kSumTile = 16;

/// out (D, D) = the slabs' sums in order, both triangles. grid: tiles on and below the diagonal; a tile goes through
/// shared memory, so that its mirror image is written by rows, too.
__global__ void __launch_bounds__(kDenseThreads) gram_sum_kernel(const double* partial, int slabs, int D, double* out) {
    STATIC_SMEM(tile, double[kSumTile][kSumTile + 1]);
    const TilePosition of = TilePosition::of(int(blockIdx.x));
    const int i = int(threadIdx.x) / kSumTile, j = int(threadIdx.x) % kSumTile;
    const int64_t r = kSumTile * of.row + i, c = kSumTile * of.column + j;
    const int64_t mirror_r = kSumTile * of.column + i, mirror_c = kSumTile * of.row + j;
    double sum = 0;
    if (r < D && c <= r)
        for (int s = 0; s < slabs; ++s) sum += partial[s * int64_t{D} * D + r * D + c];
    tile[i][j] = sum;
    __syncthreads();
    if (r < D && c <= r) out[r * D + c] = sum;
    if (mirror_c < D && mirror_r < mirror_c) out[mirror_r * D + mirror_c] = tile[j][i];
}

/// A product's shape.
struct RotateShape {
    int64_t n;
    int D, in_stride, out_stride;  // out columns from D to out_stride are zero
};

/// out (n, out_stride) = y (n, in_stride) or zero; as in the kernels below, rows with a status stay as they are.
__global__ void __launch_bounds__(kDenseThreads)
    pad_kernel(RotateShape shape, const float* y, const int32_t* status, float* out) {
    const int64_t i = int64_t{blockIdx.x} * kDenseThreads + threadIdx.x, row = i / shape.out_stride;
    const int column = int(i % shape.out_stride);
    if (row < shape.n && !(status && status[row])) out[i] = column < shape.D ? y[row * shape.in_stride + column] : 0.0f;
}

/// out (n, out_stride) = y (n, in_stride) Q, Q (D, D) float64; products and sums in float64.
/// grid: (blocks of 64 rows, blocks of 64 columns); in and out must not overlap. For the table of the solvers: of
/// a weak direction little is left of sums of large terms, and what is left decides its solution. Not yet run on a
/// device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    rotate_wide_kernel(RotateShape shape, const float* y, const double* q, const int32_t* status, float* out) {
    const int D = shape.D, column0 = int(blockIdx.y) * kDenseTile;
    const int64_t row0 = int64_t{blockIdx.x} * kDenseTile;
    dense_product<double, true, 2>(  // written by columns: two lanes meet in a bank
        0, D, [&](int k, int i) { return row0 + i < shape.n ? double(y[(row0 + i) * shape.in_stride + k]) : 0.0; },
        [&](int k, int j) { return column0 + j < D ? q[int64_t{k} * D + column0 + j] : 0.0; },
        [&](int i, int j, double sum) {
            const int64_t r = row0 + i;
            const int c = column0 + j;
            if (r < shape.n && !(status && status[r]) && c < shape.out_stride)
                out[r * shape.out_stride + c] = c < D ? float(sum) : 0.0f;
        });
}

constexpr float kBasisScale = 0x1p8f;  // elements of an orthogonal matrix are at most 1
constexpr int kSplitColumns = 4;       // tiles of 16 columns of a warp
constexpr int kSplitWarps = 4;         // of a block; each for itself

/// tiles (P / 16, P / 16, 64, 4): Q' (D, D) float64, or Q if `transposed`, padded with zeros, as right factors of
/// add_product: of each tile the lanes' hi registers, then their lo registers. A warp a tile; grid: blocks of 8.
__global__ void __launch_bounds__(kDenseThreads)
    split_basis_kernel(const double* q, int D, bool transposed, uint4* tiles) {
    const int side = int(padded(D)) / 16, tile = int(blockIdx.x) * (kDenseThreads / 32) + warp_index();
    if (tile >= side * side) return;
    const int row0 = tile / side * 16 + lane_index() / 4, column0 = tile % side * 16 + lane_index() % 4 * 2;
    Halves pairs[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        float value[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int j = row0 + 8 * (r % 2), k = column0 + 8 * (r / 2) + e;
            value[e] =
                j < D && k < D ? kBasisScale * float(q[transposed ? int64_t{j} * D + k : int64_t{k} * D + j]) : 0.0f;
        }
        pairs[r] = split(value[0], value[1]);
    }
    uint4* const own = tiles + int64_t{tile} * 64 + lane_index();
    st<uint4>(own, make_uint4(pairs[0].hi, pairs[1].hi, pairs[2].hi, pairs[3].hi));
    st<uint4>(own + 32, make_uint4(pairs[0].lo, pairs[1].lo, pairs[2].lo, pairs[3].lo));
}

/// out (n, out_stride) = y (n, in_stride) Q or y Q', Q as split_basis_kernel leaves it; float32, by split products on
/// tensor cores. grid: (blocks of 128 rows, groups of 64 columns). A warp has 32 rows and 64 columns, and nothing in
/// shared memory: fragments of y are split as they are read, those of Q come whole from L1 and L2, 2 KiB for 12 mma.
///
/// Error of an element, columns of Q being of norm 1: within (52 + P / 16) 2^-24 of the row's length under the coarsest
/// tensor core known, 22 + P / 16 on an H100: 12 for what splits leave out, the rest for how mma adds up (docs/gpu.md).
/// Sums of products in float32 have up to D 2^-24. The scale is the row's own, so short rows keep their digits beside
/// long ones. Cost: 6 n D^2 flops on tensor cores; y is read twice, first for its scale, for each group of
/// columns. Not yet run on a device.
__global__ void __launch_bounds__(32 * kSplitWarps, 3)
    rotate_split_kernel(RotateShape shape, const float* y, const uint4* tiles, const int32_t* status, float* out) {
    const int lane = lane_index(), side = int(padded(shape.D)) / 16, first = int(blockIdx.y) * kSplitColumns;
    const int64_t row0 = (int64_t{blockIdx.x} * kSplitWarps + warp_index()) * 32;
    if (row0 >= shape.n) return;
    const auto at = [&](int i, int k) {  // of the lane's row i of four
        const int64_t row = row0 + lane / 4 + 8 * i;
        return row < shape.n && k < shape.D ? y[row * shape.in_stride + k] : 0.0f;
    };
    float scale[4] = {};
    for (int k = lane % 4 * 2; k < shape.D; k += 8)
#pragma unroll
        for (int i = 0; i < 4; ++i) scale[i] = fmaxf(scale[i], fmaxf(fabsf(at(i, k)), fabsf(at(i, k + 1))));
#pragma unroll
    for (int i = 0; i < 4; ++i) scale[i] = scale_for(warp_reduce<4>(scale[i], Max()));
    float sum[2][kSplitColumns][2][4] = {};
    for (int tile = 0; tile < side; ++tile) {
        Fragment a[2];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int i = 2 * m + r % 2, k = 16 * tile + lane % 4 * 2 + 8 * (r / 2);
                const Halves pair = split(scale[i] * at(i, k), scale[i] * at(i, k + 1));
                a[m].hi[r] = pair.hi;
                a[m].lo[r] = pair.lo;
            }
#pragma unroll
        for (int j = 0; j < kSplitColumns; ++j) {
            if (first + j >= side) break;
            const uint4* const own = tiles + (int64_t{first + j} * side + tile) * 64 + lane;
            const uint4 hi = ld<uint4>(own), lo = ld<uint4>(own + 32);
            const Fragment b = {{hi.x, hi.y, hi.z, hi.w}, {lo.x, lo.y, lo.z, lo.w}};
            add_product(sum[0][j], a[0], b);
            add_product(sum[1][j], a[1], b);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t row = row0 + lane / 4 + 8 * i;
        const float unscale = 1 / scale[i];
        if (row >= shape.n || (status && status[row])) continue;
#pragma unroll
        for (int j = 0; j < kSplitColumns; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int column = 16 * (first + j) + sum_column(e / 2, e % 2);
                const float value = sum[i / 2][j][e / 2][2 * (i % 2) + e % 2] * (1 / kBasisScale) * unscale;
                if (column < shape.out_stride) out[row * shape.out_stride + column] = column < shape.D ? value : 0.0f;
            }
    }
}

/// out (P), 0 before: the largest |value| of each column of table (n, P). A maximum does not depend on its order, so an
/// atomic one is deterministic. grid: (blocks of 256 columns, slabs of rows).
__global__ void __launch_bounds__(kDenseThreads)
    column_max_kernel(const float* table, int64_t n, int P, unsigned* out) {
    const int j = int(blockIdx.x) * kDenseThreads + int(threadIdx.x);
    if (j >= P) return;
    const int64_t begin = n * blockIdx.y / gridDim.y, end = n * (blockIdx.y + 1) / gridDim.y;
    float most = 0;
    for (int64_t i = begin; i < end; ++i) most = fmaxf(most, fabsf(table[i * P + j]));
    atomicMax(out + j, __float_as_uint(most));  // of positive floats, bits are in the order of values
}

/// loss (R) float64 = sum over the row's entries of gram s^2 - 2 rhs s, s = x . y in C, added up in float64; with a
/// spectrum also the rest of the row's part of the loss, g z' diag(spectrum) z + lambda |z - prior|^2. One block a row;
/// a warp takes every fourth entry, 128 columns at a time. x: p.z, y: p.table, both of stride p.P. Not yet run on a
/// device.
template <class C>
__global__ void __launch_bounds__(32 * kLossWarps) row_loss_kernel(RotatedRows p, double* loss) {
    STATIC_SMEM(sums, double[kLossWarps]);
    const int64_t row = blockIdx.x, begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    const float* const x = p.z + row * p.P;
    const int lane = lane_index();
    double total = 0;
    for (int64_t e = begin + warp_index(); e < end; e += kLossWarps) {
        const float* const y = p.table + int64_t{p.terms.col_idx[e]} * p.P;
        C s = 0;
        for (int j = 4 * lane; j < p.P; j += 128) {
            const float4 a = ld4(x + j), b = ld4(y + j);
            s += C(a.x) * C(b.x) + C(a.y) * C(b.y) + C(a.z) * C(b.z) + C(a.w) * C(b.w);
        }
        const double score = double(warp_reduce(s, Sum()));
        total += score * (double(p.terms.gram(e)) * score - 2 * double(p.terms.rhs[e]));
    }
    if (lane != 0) total = 0;
    if (p.spectrum) {
        double background = 0, ridge = 0;
        for (int j = int(threadIdx.x); j < p.D; j += 32 * kLossWarps) {
            const double z = double(x[j]), d = z - (p.prior ? double(p.prior[row * p.P + j]) : 0.0);
            background += p.spectrum[j] * z * z;
            ridge += d * d;
        }
        total += double(p.terms.background[row]) * background + double(p.terms.ridge[row]) * ridge;
    }
    total = block_reduce<kLossWarps>(total, Sum(), sums);
    if (threadIdx.x == 0) loss[row] = total;
}

/// loss (R) float64 = ridge |x - prior|^2; x and prior (R, D), prior may be null. One warp a row.
__global__ void __launch_bounds__(32)
    ridge_loss_kernel(const float* x, const float* prior, int D, Broadcast<float> ridge, double* loss) {
    const int64_t row = blockIdx.x;
    double sum = 0;
    for (int j = int(threadIdx.x); j < D; j += 32) {
        const double d = double(x[row * D + j]) - (prior ? double(prior[row * D + j]) : 0.0);
        sum += d * d;
    }
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x == 0) loss[row] = double(ridge[row]) * sum;
}

/// n words become 0.
__global__ void __launch_bounds__(kDenseThreads) clear_kernel(int32_t* words, int64_t n) {
    for (int64_t i = int64_t{blockIdx.x} * kDenseThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kDenseThreads)
        words[i] = 0;
}

/// z = from + p.relaxation (z - from), both (R, P), in rows of 1 to `most` entries, or in longer ones of a list; see
/// Relaxation in csrc/cpu/solve_exact-inl.h. One warp a row: 12 bytes a value and next to no flops, so bound by memory.
/// Not yet run on a device.
__global__ void __launch_bounds__(32)
    relax_kernel(RotatedRows p, int64_t most, const int32_t* list, const int32_t* count, const float* from) {
    const int64_t n_rows = list ? *count : p.terms.n_rows;
    for (int64_t i = blockIdx.x; i < n_rows; i += gridDim.x) {
        const int64_t row = list ? list[i] : i, n = p.terms.row_ptr[row + 1] - p.terms.row_ptr[row];
        if (list ? n <= most : n == 0 || n > most) continue;
        for (int j = int(threadIdx.x); j < p.P; j += 32) {
            const float start = from[row * p.P + j];
            p.z[row * p.P + j] = start + p.relaxation * (p.z[row * p.P + j] - start);
        }
    }
}

/// out (1) grows by the sum of values (n), times weights (n) if there are some, in an order that does not depend on the
/// grid: one block.
__global__ void __launch_bounds__(kDenseThreads)
    sum_kernel(const double* values, const double* weights, int64_t n, double* out) {
    STATIC_SMEM(sums, double[kDenseThreads / 32]);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kDenseThreads) sum += weights ? weights[i] * values[i] : values[i];
    sum = block_reduce<kDenseThreads / 32>(sum, Sum(), sums);
    if (threadIdx.x == 0) *out += sum;
}

}  // namespace wals::cuda
