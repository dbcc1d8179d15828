// Threads of one native call.
//
// Threads are started per call (about 50 us) and joined before it returns: there is no pool that a fork could lose and
// no state between calls. The calling thread works too, and asks `interrupted` (Ctrl-C) after each of its tasks.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "../common/platform.h"

namespace wals::cpu {

/// Returns true when the call should stop; called often, from the calling thread only.
using Interrupted = std::function<bool()>;

/// Runs task(i, thread) for i in [0, n_tasks), handing indices out in order. Returns false if interrupted: tasks that
/// had begun are complete, the others were not begun. What a task throws ends the run in the same way, and is thrown
/// again to the caller when all threads have ended.
template <class Task>
bool parallel_for(int64_t n_tasks, int n_threads, const Interrupted& interrupted, Task&& task) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> stop{false};
    std::exception_ptr error;
    std::atomic_flag has_error = ATOMIC_FLAG_INIT;
    auto work = [&](int thread, bool asks) noexcept {
        try {
            for (;;) {
                const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
                if (i >= n_tasks || stop.load(std::memory_order_relaxed)) return;
                task(i, thread);
                if (asks && interrupted && interrupted()) stop.store(true, std::memory_order_relaxed);
            }
        } catch (...) {
            if (!has_error.test_and_set()) error = std::current_exception();
            stop.store(true, std::memory_order_relaxed);
        }
    };
    std::vector<std::thread> others;
    const int64_t helpers = n_threads < n_tasks ? n_threads - 1 : n_tasks - 1;
    if (helpers > 0) others.reserve(size_t(helpers));
    for (int t = 0; t < helpers; ++t) {
        try {
            others.emplace_back(work, t + 1, false);
        } catch (const std::exception&) {
            break;  // fewer threads than asked for: the work is done all the same
        }
    }
    work(0, true);
    for (std::thread& t : others) t.join();
    if (error) std::rethrow_exception(error);
    return !stop.load();
}

/// One aligned block of memory, released on scope exit; throws std::bad_alloc. A large one asks the system for huge
/// pages: kernels read table rows in random order, and a page-table walk per row costs CG on long rows a quarter.
class Buffer {
   public:
    explicit Buffer(int64_t bytes = 0) {
        if (bytes <= 0) return;
        align_ = bytes >= 4 * kHugePage ? kHugePage : 64;
        data_ = static_cast<char*>(::operator new(size_t(bytes), std::align_val_t(align_)));
        if (align_ == kHugePage) advise_huge_pages(data_, size_t(bytes / kHugePage * kHugePage));
    }
    ~Buffer() {
        if (data_) ::operator delete(data_, std::align_val_t(align_));
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(align_, other.align_);
        return *this;
    }
    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    char* data() const { return data_; }

   private:
    static constexpr int64_t kHugePage = 2 << 20;
    char* data_ = nullptr;
    size_t align_ = 64;
};

/// One buffer of the same size for each thread, allocated before any thread starts.
inline std::vector<Buffer> buffers_per_thread(int n_threads, int64_t bytes) {
    std::vector<Buffer> buffers;
    buffers.reserve(size_t(n_threads));
    for (int t = 0; t < n_threads; ++t) buffers.emplace_back(bytes);
    return buffers;
}

}  // namespace wals::cpu
