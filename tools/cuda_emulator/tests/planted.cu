// The clean kernel, and eight bugs planted in it. The tests look for the words "line:" to know what must be reported.
#include "../../../csrc/cuda/device.h"
#include "kernels.h"

using namespace wals::cuda;

namespace {

constexpr int kD = 32, kTile = 16, kStride = kD + 8;  // columns; rows gathered at a time; floats between them
constexpr int kThreads = 64;

struct Layout {
    float *tile, *gram;
    __host__ __device__ explicit Layout(Carver& carve)
        : tile(carve.take<float>(kTile * kStride)), gram(carve.take<float>(kD * kStride)) {}
};

/// out[r] = the sums of the rows of Y_r' Y_r, Y_r the rows of `table` that row r names; a block per row.
template <int bug>
__global__ void __launch_bounds__(kThreads)
    gram_sums_kernel(const int64_t* __restrict__ row_ptr, const int32_t* __restrict__ col_idx,
                     const float* __restrict__ table, float* out) {
    Carver carve(dynamic_smem());
    const Layout s(carve);
    const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int64_t begin = row_ptr[blockIdx.x], end = row_ptr[blockIdx.x + 1];
    float sum[4][4] = {};  // rows 16 warp .. 16 warp + 15 of the Gram, 8 columns each
    for (int64_t first = begin; first < end; first += kTile) {
        for (int c = thread; c < kTile * kD / 4; c += kThreads) {
            const int64_t e = first + c / (kD / 4);
            const int column = c % (kD / 4) * 4;
            int64_t row = e < end ? col_idx[e] : 0;
            if (bug == 8 && e == begin) row += 1000;
            const float* const from = table + row * kD + column;
            cp_async(s.tile + c / (kD / 4) * kStride + column, from, e < end);  // line: copy
        }
        cp_async_commit();
        if (bug != 2) cp_async_wait<0>();
        if (bug != 1) __syncthreads();
        uint32_t a[4], b[2];
        for (int e = 0; e < 4; ++e) {
            const float* const from = s.tile + (2 * t + 8 * (e >> 1)) * kStride + 16 * warp + g + 8 * (e & 1);
            a[e] = pack_f16(from[0], from[kStride]);  // line: read
        }
        for (int n = 0; n < 4; ++n) {
            for (int e = 0; e < 2; ++e) {
                const float* const from = s.tile + (2 * t + 8 * e) * kStride + 8 * n + g;
                b[e] = pack_f16(from[0], from[kStride]);  // line: read
            }
            mma_f16(sum[n], a, b, sum[n]);
        }
        if (bug == 4) {
            if (warp == 0) __syncthreads();  // line: divergent
        } else {
            __syncthreads();
        }
    }
    for (int n = 0; n < 4; ++n)
        for (int e = 0; e < 4; ++e)
            s.gram[(16 * warp + g + 8 * (e >> 1)) * kStride + 8 * n + 2 * t + (e & 1)] = sum[n][e];  // line: store
    if (bug == 3 && thread == 5) s.gram[kD * kStride] = 0;                                           // line: overrun
    if (bug != 5) __syncthreads();
    float part = 0;  // two threads a row, each half of it
    for (int j = thread % 2; j < kD; j += 2) part += s.gram[thread / 2 * kStride + j];  // line: use
    if (bug == 6) {
        if (lane < 16) part += __shfl_xor_sync(0xffffffffu, part, 1);  // line: half
    } else {
        part += __shfl_xor_sync(0xffffffffu, part, 1);  // line: whole
    }
    const int64_t row = bug == 7 ? blockIdx.x / 2 : blockIdx.x;
    if (thread % 2 == 0) out[row * kD + thread / 2] = part;  // line: result
}

template <int bug>
void start(int n_rows, const int64_t* row_ptr, const int32_t* col_idx, const float* table, float* out) {
    launch(gram_sums_kernel<bug>, dim3(unsigned(n_rows)), dim3(kThreads), Carver::bytes_of<Layout>(), nullptr, row_ptr,
           col_idx, table, out);
}

}  // namespace

void run_planted(int bug, int n_rows, const int64_t* row_ptr, const int32_t* col_idx, const float* table, float* out) {
    constexpr decltype(&start<0>) starts[] = {start<0>, start<1>, start<2>, start<3>, start<4>,
                                              start<5>, start<6>, start<7>, start<8>};
    starts[bug](n_rows, row_ptr, col_idx, table, out);
}
