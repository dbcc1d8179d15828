// Launchers of top-k.
#include <algorithm>

#include "launch.h"
#include "topk.cuh"

namespace wals::cuda {
namespace {

/// Where items are fewer than so many for each result, they are scored at once: too many would be candidates.
constexpr int64_t kFewestItems = 16;

/// Bytes of the lists of segments at most, if there is more than one.
constexpr int64_t kListBytes = 1 << 28;

int results_of(int64_t n_items, int64_t k) {
    return int(std::max<int64_t>(1, std::min(k, n_items)));
}

/// What is in the workspace.
struct Workspace {
    SplitRows queries;
    TopkLists lists, merged;
    unsigned* exact;
    int64_t bytes;

    Workspace(void* memory, int64_t B, int64_t n_items, int64_t D, int64_t k, int64_t blocks) {
        const int P = int(padded(D)), n = int(topk_segments(B, n_items, k, blocks));
        const int n_merged = n > kTopkMerged ? (n + kTopkMerged - 1) / kTopkMerged : 0;
        const int64_t capacity = topk_capacity(results_of(n_items, k));
        queries = SplitRows::at(memory, B, P);
        Key* const keys = reinterpret_cast<Key*>(reinterpret_cast<unsigned char*>(memory) + SplitRows::bytes(B, P));
        Key* const merged_keys = keys + B * n * capacity;
        int32_t* const counts = reinterpret_cast<int32_t*>(merged_keys + B * n_merged * capacity);
        lists = {keys, counts, n};
        merged = {merged_keys, counts + B * n, n_merged};
        exact = reinterpret_cast<unsigned*>(counts + B * (n + n_merged));
        bytes = reinterpret_cast<unsigned char*>(exact + B) - reinterpret_cast<unsigned char*>(memory);
    }
};

template <bool kExact>
void search(const TopkProblem& p, const TopkLists& merged, int64_t k, int32_t* ids, float* scores, Stream stream) {
    const auto B = unsigned(p.n_queries);
    const size_t smem = 2 * size_t(topk_capacity(p.k)) * sizeof(Key);
    launch(topk_kernel<kExact>, dim3((B + kTopkQueries - 1) / kTopkQueries, unsigned(p.lists.n)), kTopkThreads,
           Carver::bytes_of<TopkMemory>(p.stages), stream, p);
    const TopkLists result = {};
    if (merged.n)
        launch(topk_merge_kernel<kExact>, dim3(B, unsigned(merged.n)), kTopkThreads, smem, stream, p, p.lists, merged,
               k, ids, scores);
    launch(topk_merge_kernel<kExact>, B, kTopkThreads, smem, stream, p, merged.n ? merged : p.lists, result, k, ids,
           scores);
}

}  // namespace

int64_t topk_segments(int64_t B, int64_t n_items, int64_t k, int64_t together) {
    const int64_t list = topk_capacity(results_of(n_items, k)) * int64_t(sizeof(Key));
    const int64_t blocks = (B + kTopkQueries - 1) / kTopkQueries, tiles = (n_items + kTopkItems - 1) / kTopkItems;
    const int64_t most =
        std::min({tiles, kListBytes / std::max<int64_t>(B * list, 1), together, int64_t{kTopkMerged} * kTopkMerged});
    // Rounds of blocks over the device, each as long as its tiles and what comes before and after them.
    int64_t best = 1, least = INT64_MAX;
    for (int64_t n = 1; n <= std::max<int64_t>(most, 1); ++n) {
        const int64_t rounds = (blocks * n + together - 1) / together;
        const int64_t time = rounds * ((tiles + n - 1) / n + 2);
        if (time < least) {
            least = time;
            best = n;
        }
    }
    return best;
}

float topk_bound(int64_t D) {
    return 0x1p-10f + 0x1p-15f + float(padded(D)) * 0x1p-21f;
}

int64_t topk_table_bytes(int64_t n_items, int64_t D) {
    return SplitRows::bytes(n_items, int(padded(D)));
}

void topk_table(const float* items, int64_t n, int64_t D, const float* norms, void* table, int64_t first,
                int64_t n_items, Stream stream) {
    const int P = int(padded(D));
    launch(split_rows_kernel, unsigned((n + kTopkWarps - 1) / kTopkWarps), kTopkThreads, 0, stream, items, n, int(D), P,
           norms, SplitRows::at(table, n_items, P).from(first, P), nullptr, 0.0f);
}

int64_t topk_bytes(int64_t B, int64_t n_items, int64_t D, int64_t k, int64_t blocks) {
    return Workspace(nullptr, B, n_items, D, k, blocks).bytes;
}

void topk(const float* queries, int64_t B, void* table, int64_t n_items, int64_t D, int64_t k, int64_t blocks,
          const int64_t* excluded_ptr, const int32_t* excluded_idx, const uint32_t* permitted, int32_t* ids,
          float* scores, void* workspace, Stream stream) {
    if (B == 0) return;
    const Workspace own(workspace, B, n_items, D, k, blocks);
    TopkProblem p = {};
    p.n_queries = B;
    p.n_items = n_items;
    p.P = int(padded(D));
    p.k = results_of(n_items, k);
    p.stages = fits(Carver::bytes_of<TopkMemory>(3)) ? 3 : 2;
    p.queries = own.queries;
    p.items = SplitRows::at(table, n_items, p.P);
    p.excluded_ptr = excluded_ptr;
    p.excluded_idx = excluded_idx;
    p.permitted = permitted;
    p.lists = own.lists;
    p.exact = own.exact;
    const bool is_direct = n_items < kFewestItems * p.k;
    const float bound = is_direct ? INFINITY : topk_bound(D);
    launch(split_rows_kernel, unsigned((B + kTopkWarps - 1) / kTopkWarps), kTopkThreads, 0, stream, queries, B, int(D),
           p.P, nullptr, p.queries, p.exact, bound);
    if (!is_direct) search<false>(p, own.merged, k, ids, scores, stream);
    search<true>(p, own.merged, k, ids, scores, stream);
}

}  // namespace wals::cuda
