// How tests steer the emulator: schedules, limits, device memory, the profile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

struct CUstream_st;

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
    bool profile = false;         // checked build: count bank conflicts and sectors
    double seconds = 300;         // of processor time that a launch may take
    Tensor tensor = {0, 4};       // of a V100, the coarsest known
    bool lazy = false;            // work runs as late as streams allow, errors stick; else at once
    int devices = 1;
    size_t memory = 0;  // bytes of a device; 0: no limit
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

/// A stream of a device, null: the default one; of the current device where there is none. While work is given to it
/// the device is current.
struct Place {
    int device = -1;
    CUstream_st* stream = nullptr;
};
CUstream_st* new_stream(int device);
void synchronize(Place where);
/// The number of an event behind all that the stream has been given; what a stream is given after wait() comes after
/// it.
size_t record(Place where);
void wait(Place where, size_t event);
void copy(uintptr_t to, uintptr_t from, size_t bytes, Place where);
void fill(uintptr_t p, int value, size_t bytes, Place where);
/// Drops the error that sticks to a device.
void reset_device(int device);

/// Memory of a device: full of NaN, its end at a page that faults; null when there is no more. After release() it is
/// gone when what was given to its stream is done; who uses it on others says so by share().
void* allocate(size_t bytes, const std::string& name, Place where = {});
void release(void* p);
void share(uintptr_t p, Place where);
size_t free_memory(int device);
/// Host memory that copies read and write when they run.
void* allocate_host(size_t bytes);
void release_host(void* p);

/// What the host asked for since the last reset. A wait is the host standing still until a device has caught up.
struct Counts {
    long long launches = 0, uploads = 0, downloads = 0, fills = 0, events = 0, waits = 0, allocations = 0;
};
Counts counts();
void reset_counts();
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
