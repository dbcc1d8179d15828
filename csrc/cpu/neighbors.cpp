#include "neighbors.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace wals::cpu {
namespace {

/// Items of a task: their rows take from a microsecond to some milliseconds.
constexpr int64_t kItemsPerTask = 8;

/// With the least memory the second step, at most as long as the first, is done so many times at most.
constexpr int64_t kMostRounds = 32;

int64_t pairs_of(int64_t m) {
    return m * (m + 1) / 2;
}

/// Bytes of an item's pairs, and of the places where it is found again.
template <class T>
int64_t bytes_of_item(int64_t m) {
    return pairs_of(m) * int64_t(sizeof(T)) + m * int64_t(sizeof(Holder));
}

/// Bytes whatever the number of items in a round.
template <class T>
int64_t fixed_bytes(int64_t n_items, int64_t m, int n_threads) {
    const int64_t each = sizeof(double) + sizeof(int32_t) + 2 * sizeof(int64_t);  // diagonal, count, two pointers
    return n_threads * kernels<T>().neighbor_workspace_bytes(n_items, m) + each * (n_items + 1) + 4096;
}

/// Bytes of a round for which rounds take the least time, of `all` bytes: another round is another half of all
/// additions (0.4 ns each), and a byte of new memory costs the system 0.3 ns. Ten million bytes cost nothing that
/// shows.
template <class T>
int64_t best_room(const Neighborhoods<T>& p, int64_t all) {
    double additions = 0;
    for (int64_t u = 0; u < p.n_users; ++u) {
        const double n = double(p.user_ptr[u + 1] - p.user_ptr[u]);
        additions += n * n / 2;
    }
    return std::max<int64_t>(10'000'000, int64_t(std::sqrt(double(all) * additions * 0.4 / 0.3)));
}

template <class Task>
bool for_items(int64_t begin, int64_t end, int n_threads, const Interrupted& interrupted, Task&& task) {
    const int64_t tasks = (end - begin + kItemsPerTask - 1) / kItemsPerTask;
    return parallel_for(tasks, n_threads, interrupted, [&](int64_t t, int thread) {
        const int64_t first = begin + t * kItemsPerTask;
        for (int64_t i = first; i < std::min(end, first + kItemsPerTask); ++i) task(i, thread);
    });
}

}  // namespace

template <class T>
NeighborMemory neighbor_memory(int64_t n_items, int64_t m, int n_threads) {
    m = std::min(m, n_items);
    const int64_t fixed = fixed_bytes<T>(n_items, m, n_threads), item = bytes_of_item<T>(m);
    // As many rounds as there may be.
    const int64_t fewest = std::max<int64_t>(1, (n_items + kMostRounds - 1) / kMostRounds);
    return {fixed + fewest * item, fixed + n_items * item};
}

template <class T>
bool fit_neighbors(Neighborhoods<T> p, int64_t memory, int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& kernel = kernels<T>();
    p.m = std::min(p.stride, p.n_items);
    if (p.first >= p.last || p.m == 0) return true;
    const NeighborMemory bounds = neighbor_memory<T>(p.n_items, p.m, n_threads);
    int64_t room = std::max(memory, bounds.least) - fixed_bytes<T>(p.n_items, p.m, n_threads);
    room = std::min(room, best_room(p, (p.last - p.first) * bytes_of_item<T>(p.m)));
    const auto workspace = buffers_per_thread(n_threads, kernel.neighbor_workspace_bytes(p.n_items, p.m));
    Buffer diagonal(p.n_items * int64_t(sizeof(double)) + 64), count(p.n_items * int64_t(sizeof(int32_t)));
    std::vector<int64_t> pair_ptr(size_t(p.n_items) + 1), holder_ptr(size_t(p.n_items) + 1);
    p.diagonal = diagonal.as<double>();
    p.count = count.as<int32_t>();
    auto of = [&](int thread) { return workspace[size_t(thread)].data(); };

    for (int t = 0; t < n_threads; ++t) kernel.start_neighbors(p.n_items, p.m, of(t));
    bool done = parallel_for((p.n_items + 255) / 256, n_threads, interrupted, [&](int64_t t, int) {
        kernel.sum_diagonal(p, t * 256, std::min(p.n_items, (t + 1) * 256), diagonal.as<double>());
    });
    done = done && for_items(p.first, p.last, n_threads, interrupted,
                             [&](int64_t i, int thread) { kernel.select_neighbors(p, i, of(thread)); });

    Buffer pairs, holders;
    int64_t pairs_size = 0, holders_size = 0;
    for (int64_t begin = p.first, end; done && begin < p.last; begin = end) {
        // A round: as many items as there is room for.
        int64_t n_pairs = 0, n_holders = 0, bytes = 0;
        for (end = begin; end < p.last; ++end) {
            const int64_t n = p.count[end];
            bytes += bytes_of_item<T>(n);
            if (bytes > room && end > begin) break;
            pair_ptr[size_t(end)] = n_pairs;
            n_pairs += pairs_of(n);
            n_holders += n;
        }
        if (n_pairs > pairs_size) {
            pairs = Buffer();  // before the next one
            pairs = Buffer((pairs_size = n_pairs) * int64_t(sizeof(T)));
        }
        if (n_holders > holders_size) {
            holders = Buffer();
            holders = Buffer((holders_size = n_holders) * int64_t(sizeof(Holder)));
        }
        std::fill(holder_ptr.begin(), holder_ptr.end(), 0);
        for (int64_t i = begin; i < end; ++i)
            for (int64_t n = 0; n < p.count[i]; ++n) ++holder_ptr[size_t(p.ids[(i - p.first) * p.stride + n])];
        int64_t at = 0;
        for (int64_t& place : holder_ptr) at += std::exchange(place, at);
        for (int64_t i = begin; i < end; ++i)
            for (int64_t n = 0, to = pair_ptr[size_t(i)]; n < p.count[i]; to += p.count[i] - n++)
                holders.as<Holder>()[holder_ptr[size_t(p.ids[(i - p.first) * p.stride + n])]++] = {
                    (i - p.first) * p.stride + n, to, p.count[i] - n};
        auto first_holder = [&](int64_t k) { return k ? holder_ptr[size_t(k) - 1] : 0; };  // they have moved on
        done = for_items(0, p.n_items, n_threads, interrupted, [&](int64_t k, int thread) {
            const int64_t first = first_holder(k), n = holder_ptr[size_t(k)] - first;
            if (n > 0) kernel.fill_pairs(p, k, holders.as<Holder>() + first, n, pairs.as<T>(), of(thread));
        });
        done = done && for_items(begin, end, n_threads, interrupted, [&](int64_t i, int thread) {
                   kernel.regress(p, i, pairs.as<T>() + pair_ptr[size_t(i)], of(thread));
               });
    }
    return done;
}

#define WALS_INSTANTIATE(T)                                            \
    template NeighborMemory neighbor_memory<T>(int64_t, int64_t, int); \
    template bool fit_neighbors<T>(Neighborhoods<T>, int64_t, int, const Interrupted&);
WALS_INSTANTIATE(float)
WALS_INSTANTIATE(double)

}  // namespace wals::cpu
