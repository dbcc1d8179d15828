// Every item's nearest items and the regressions on them: the native calls (see drivers.h for what all calls share).
#pragma once

#include "drivers.h"

namespace wals::cpu {

/// Bytes that fit_neighbors works in: with less than `least` it does not start; with `most` it computes no row twice
/// for want of memory.
struct NeighborMemory {
    int64_t least, most;
};
template <class T>
NeighborMemory neighbor_memory(int64_t n_items, int64_t m, int n_threads);

/// Fills problem.ids and problem.weights; diagonal, count and m are set here. Works in `memory` bytes at most, or in
/// the least.
template <class T>
bool fit_neighbors(Neighborhoods<T> problem, int64_t memory, int n_threads, const Interrupted&);

}  // namespace wals::cpu
