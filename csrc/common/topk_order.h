// The order of retrieval results, the same on every device: score down, then index up.
#pragma once

#include <cstdint>

namespace wals {

template <class T>
struct Candidate {
    T score;
    int32_t id;
};

template <class T>
inline bool comes_before(const Candidate<T>& a, const Candidate<T>& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

}  // namespace wals
