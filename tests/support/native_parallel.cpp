// A program of its own: what tasks throw, in any thread, reaches the caller; no thread is left, none ends the process.
#include <chrono>
#include <cstdio>
#include <stdexcept>

#include "../../csrc/cpu/parallel.h"

int main() {
    int caught = 0;
    for (int threads : {1, 2, 8})
        for (int64_t bad : {0, 1, 63}) {
            std::atomic<int> running{0};
            try {
                wals::cpu::parallel_for(64, threads, {}, [&](int64_t i, int) {
                    ++running;
                    std::this_thread::sleep_for(std::chrono::microseconds(200));
                    --running;
                    if (i == bad) throw std::bad_alloc();
                });
            } catch (const std::bad_alloc&) {
                caught += running == 0;
            }
        }
    try {  // the question whether to go on may fail, too
        wals::cpu::parallel_for(64, 1, [] { return throw std::runtime_error("asked"), false; }, [](int64_t, int) {});
    } catch (const std::runtime_error&) {
        ++caught;
    }
#if !defined(__SANITIZE_THREAD__)  // whose operator new ends the process
    try {
        wals::cpu::buffers_per_thread(4, int64_t{1} << 60);
    } catch (const std::bad_alloc&) {
        ++caught;
    }
#endif
    std::printf("%d caught\n", caught);
}
