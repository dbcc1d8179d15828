// How tests steer the emulator: schedules, limits, device memory, the profile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

struct CUstream_st;

namespace emu {

#ifdef EMU_CHECKED
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

enum class Order { kForward, kReverse, kRandom };

/// How an mma adds up (tensor.cpp): so many products at a time; bits behind a float32's last one, 29: all of a
/// double's.
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
/// Between the two the stream, and those that wait for its events, note what they are given; replay() gives it.
void begin_graph(Place where);
size_t end_graph(Place where);
void replay(Place where, size_t graph);
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
using Counts = std::map<std::string, long long>;
Counts counts();
void reset_counts();
/// What kernels may touch: beginning, end and name of each array.
using Array = std::tuple<uintptr_t, uintptr_t, std::string>;
std::vector<Array> arrays();

/// Accesses of one source line, over all warps and blocks since the profile was reset: file, line, whether shared
/// memory, "read", "write", "atomic" or "copy", bytes of a lane. Their requests of a warp, wavefronts (shared) or
/// 32-byte sectors (global), and the least possible.
using Line = std::tuple<std::string, int, bool, std::string, int>;
using Traffic = std::array<long long, 3>;
std::map<Line, Traffic> profile();
void reset_profile();

}  // namespace emu
