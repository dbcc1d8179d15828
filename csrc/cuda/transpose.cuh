// CSR transposition: a stable radix sort of the entries by column, eight bits at a time. No atomics decide an order, so
// the result is the same each time, and its rows come in increasing order.
#pragma once

#include "block.cuh"

namespace wals::cuda {

constexpr int kSortWarps = 8, kDigits = 256;

/// Entries in the course of the sort.
struct SortedEntries {
    int32_t *column, *row;
    float* value;  // may be null
};

/// row (Z) = row number of each entry; a warp takes a row.
__global__ void __launch_bounds__(256) expand_rows_kernel(const int64_t* row_ptr, int64_t n_rows, int32_t* row) {
    const int64_t r = int64_t{blockIdx.x} * 8 + warp_index();
    if (r >= n_rows) return;
    for (int64_t e = row_ptr[r] + lane_index(); e < row_ptr[r + 1]; e += 32) row[e] = int32_t(r);
}

/// counts (kDigits, slabs): how often each digit comes in each slab of the entries. A warp has a slab.
__global__ void __launch_bounds__(32 * kSortWarps)
    count_digits_kernel(const int32_t* column, int64_t Z, int shift, int slabs, int64_t* counts) {
    STATIC_SMEM(histogram, int[kSortWarps][kDigits]);
    const int slab = int(blockIdx.x) * kSortWarps + warp_index(), lane = lane_index();
    if (slab >= slabs) return;
    int* const bins = histogram[warp_index()];
    for (int i = lane; i < kDigits; i += 32) bins[i] = 0;
    __syncwarp();
    for (int64_t e = Z * slab / slabs + lane; e < Z * (slab + 1) / slabs; e += 32)
        atomicAdd(bins + (column[e] >> shift & 255), 1);
    __syncwarp();
    for (int i = lane; i < kDigits; i += 32) counts[int64_t{i} * slabs + slab] = bins[i];
}

/// counts (n) become the sums of those before them. One block.
__global__ void __launch_bounds__(1024) scan_kernel(int64_t* counts, int64_t n) {
    STATIC_SMEM(sums, int64_t[1024]);
    const int t = int(threadIdx.x);
    const int64_t begin = n * t / 1024, end = n * (t + 1) / 1024;
    int64_t own = 0;
    for (int64_t i = begin; i < end; ++i) own += counts[i];
    sums[t] = own;
    __syncthreads();
    for (int step = 1; step < 1024; step *= 2) {
        const int64_t other = t >= step ? sums[t - step] : 0;
        __syncthreads();
        sums[t] += other;
        __syncthreads();
    }
    int64_t before = sums[t] - own;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t count = counts[i];
        counts[i] = before;
        before += count;
    }
}

/// Moves entries to their places by one digit. A warp goes through its slab in order, 32 entries at a time; equal
/// digits among them take neighbouring places.
__global__ void __launch_bounds__(32 * kSortWarps)
    scatter_kernel(SortedEntries from, SortedEntries to, int64_t Z, int shift, int slabs, const int64_t* offsets) {
    STATIC_SMEM(places, int64_t[kSortWarps][kDigits]);
    const int slab = int(blockIdx.x) * kSortWarps + warp_index(), lane = lane_index();
    if (slab >= slabs) return;
    int64_t* const next = places[warp_index()];
    for (int i = lane; i < kDigits; i += 32) next[i] = offsets[int64_t{i} * slabs + slab];
    __syncwarp();
    const int64_t begin = Z * slab / slabs, end = Z * (slab + 1) / slabs;
    for (int64_t e0 = begin; e0 < end; e0 += 32) {
        const int64_t e = e0 + lane;
        const int32_t column = e < end ? from.column[e] : -1;
        const int digit = e < end ? column >> shift & 255 : kDigits;
        const unsigned peers = __match_any_sync(kFullWarp, digit);
        const int rank = __popc(peers & ((1u << lane) - 1));
        const int64_t place = e < end ? next[digit] + rank : 0;
        __syncwarp();
        if (e < end) {
            if (rank == 0) next[digit] += __popc(peers);
            to.column[place] = column;
            to.row[place] = from.row[e];
            if (from.value) to.value[place] = from.value[e];
        }
        __syncwarp();
    }
}

/// row_ptr (n_cols + 1) of entries sorted by column.
__global__ void __launch_bounds__(256)
    column_starts_kernel(const int32_t* column, int64_t Z, int64_t n_cols, int64_t* row_ptr) {
    const int64_t e = int64_t{blockIdx.x} * 256 + threadIdx.x;
    if (e > Z) return;
    const int64_t from = e > 0 ? column[e - 1] : -1, to = e < Z ? column[e] : n_cols;
    for (int64_t c = from + 1; c <= to; ++c) row_ptr[c] = e;
}

}  // namespace wals::cuda
