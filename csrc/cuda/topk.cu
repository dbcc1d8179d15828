// Launcher of top-k.
#include <algorithm>

#include "launch.h"
#include "topk.cuh"

namespace wals::cuda {
namespace {

/// Parts of the items that go to different blocks when queries are too few to fill a chip.
int64_t topk_segments(int64_t B, int64_t n_items, int64_t k) {
    const int64_t blocks = (B + kTopkQueries - 1) / kTopkQueries,
                  most = (limits::blocks_of_device + blocks - 1) / blocks;
    return std::max<int64_t>(1, std::min({most, n_items / 1024, kMostSorted / k}));
}

}  // namespace

int64_t topk_bytes(int64_t B, int64_t n_items, int64_t k) {
    const int64_t n_results = std::min(k, n_items);
    const int64_t lists = B * topk_segments(B, n_items, std::max<int64_t>(n_results, 1));
    return lists * (topk_capacity(int(n_results)) * int64_t(sizeof(Key)) + int64_t(sizeof(int32_t))) +
           (B + n_items) * int64_t(sizeof(float)) + 64;
}

void topk(const float* queries, int64_t B, const float* items, int64_t n_items, int64_t D, int64_t k,
          const int64_t* excluded_ptr, const int32_t* excluded_idx, int32_t* ids, float* scores, void* workspace,
          Stream stream) {
    if (B == 0) return;
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    TopkProblem p = {};
    p.n_queries = B;
    p.n_items = n_items;
    p.P = int(padded(D));
    p.k = int(std::max<int64_t>(1, std::min(k, n_items)));
    p.segments = int(topk_segments(B, n_items, p.k));
    p.queries = queries;
    p.items = items;
    p.excluded_ptr = excluded_ptr;
    p.excluded_idx = excluded_idx;
    p.lists = static_cast<Key*>(workspace);
    float* const scales = reinterpret_cast<float*>(p.lists + B * p.segments * topk_capacity(p.k));
    p.query_scale = scales;
    p.item_scale = scales + B;
    p.counts = reinterpret_cast<int32_t*>(scales + B + n_items);
    launch(row_scale_kernel, unsigned(B), 32, 0, cuda_stream, queries, p.P, scales);
    if (n_items) launch(row_scale_kernel, unsigned(n_items), 32, 0, cuda_stream, items, p.P, scales + B);
    const dim3 grid(unsigned((B + kTopkQueries - 1) / kTopkQueries), unsigned(p.segments));
    if (const size_t deep = Carver::bytes_of<TopkMemory<kDepth>>(); fits(deep))
        launch(topk_kernel<kDepth>, grid, kTopkThreads, deep, cuda_stream, p);
    else
        launch(topk_kernel<16>, grid, kTopkThreads, Carver::bytes_of<TopkMemory<16>>(), cuda_stream, p);
    int places = 1;
    while (places < p.k * p.segments) places *= 2;
    launch(topk_sort_kernel, unsigned(B), kTopkThreads, places * sizeof(Key), cuda_stream, p, places, k, ids, scores);
}

}  // namespace wals::cuda
