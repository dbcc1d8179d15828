// How tests steer the emulator: schedules, limits, device memory, the profile.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace emu {

enum class Order { kForward, kReverse, kRandom };

/// How an mma adds up (tensor.cpp): so many products at a time, 0: all, exactly; bits behind a float32's last one.
struct Tensor {
    int extra, block;
};

struct Config {
    Order order = Order::kForward;
    unsigned long long seed = 1;  // of the random order
    int resident_blocks = 1;      // that run interleaved
    int architecture = 80;        // of chip()
    bool eager_copies = false;    // cp.async lands when issued instead of when waited for
    bool allow_exited = false;    // barriers ignore exited threads, as chips do since sm_70
    bool strict = true;           // checked build: global memory must be registered
    bool profile = false;         // checked build: count bank conflicts and sectors
    double seconds = 300;         // of processor time that a launch may take
    Tensor tensor = {0, 4};       // of a V100, the coarsest known
};
void configure(const Config& config);
const Config& configuration();

/// A device of the architecture that is set, of those on sale the smaller ones.
struct Chip {
    int architecture, processors, threads, registers;  // of a processor
    size_t shared, shared_reserved, shared_of_block;   // bytes of a processor; of them for each block besides its own
    size_t cache, memory;
};
const Chip& chip();

/// Device memory: full of NaN, its end at a page that faults. Memory of others becomes known by adopt().
void* allocate(size_t bytes, const std::string& name);
void release(void* p);
void adopt(const void* p, size_t bytes, const std::string& name);
void forget(const void* p);

/// What kernels may touch.
struct Array {
    const void *begin, *end;
    std::string name;
};
std::vector<Array> arrays();

/// Somebody else who runs kernels: gets each launch as a driver does. Empty: the emulator runs them again.
struct Launched;
void run_elsewhere(std::function<void(const Launched&)> runner);

/// Accesses of one source line, over all warps and blocks since the profile was reset.
struct Line {
    std::string file;
    int line;
    bool shared;
    const char* kind;                  // "read", "write", "atomic" or "copy"
    int bytes;                         // a lane
    long long requests, units, ideal;  // of a warp; wavefronts (shared) or 32-byte sectors (global); the least possible
};
std::vector<Line> profile();
void reset_profile();

}  // namespace emu
