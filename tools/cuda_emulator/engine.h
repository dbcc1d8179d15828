// What the parts of the engine share: the blocks being run, their warps and lanes, and the hooks of the checked build.
// How they work together: engine.cpp (launches, blocks, findings), schedule.cpp (whose turn it is, barriers, warps),
// access.cpp (memory as kernels reach it), checked.cpp (races and bounds), memory.cpp (device memory, source lines),
// fault.cpp and watchdog.cpp (out of a kernel that faults or does not end), tensor.cpp (mma, ldmatrix), runtime.cpp
// (devices, streams and copies: when launches happen).
//
// The engine is compiled without instrumentation, twice: with EMU_CHECKED for modules with instrumented kernels. There
// is one launch at a time, so nothing is locked but launches and changes to the list of allocations.
#pragma once

#include <signal.h>
#include <time.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "control.h"
#include "emulator.h"

namespace emu {

constexpr size_t kPage = 4096;
constexpr size_t kStack = 64 * 1024;
constexpr size_t kStackPitch = kStack + kPage;  // a guard below each
constexpr int kMaxThreads = 1024, kMaxWarps = 32, kMaxResident = 16;
constexpr size_t kStaticLimit = 48 * 1024;
constexpr size_t kRedZone = kChecked ? 128 : 0;  // between arrays; a multiple of 32 banks, so that conflicts stay
constexpr size_t kStaticRegion = 64 * 1024;      // of an arena; dynamic shared memory follows
constexpr size_t kArena = kStaticRegion + 288 * 1024;
constexpr size_t kArenaPitch = kArena + kPage;  // a guard behind each

struct Site {
    const char *what = "", *file = "";
    int line = 0;
};

struct Copy {  // of cp.async, 16 bytes on their way
    unsigned char* dst;
    const unsigned char* src;
    bool real;
    unsigned group;
    Site site;
    uintptr_t pc;

    void land() const;
};

struct Block;
struct Warp;

/// A stack, and the place where it stopped: a fibre, or what has no fibre (schedule.cpp).
struct Context {
    using Place = void* [5];  // of __builtin_setjmp
    Place place, beginning;
    bool begun = false;      // whether the fibre has a beginning
    char* unused = nullptr;  // the bottom of its stack where it is to run from the beginning
    size_t bytes = 0;
};

enum class State : uint8_t { kRunnable, kInCollective, kInBarrier, kExited };

struct Lane {
    Context context;
    Block* block;
    Warp* warp;
    int id;  // in the block
    uint3 index;
    State state;
    const Site* site;  // where it waits
    std::vector<Copy> copies;
    unsigned groups;  // committed
};

using Combine = void (*)(Warp& warp, void* const* records, unsigned mask);

struct Pending {  // a collective some of whose lanes have come
    unsigned mask, arrived;
    Combine combine;
    const Site* site;  // on the stack of the first to come
    void* records[32];
};

struct Warp {
    int id;
    unsigned live, ready;  // lanes that have not exited; that can run and do not
    int n_pending;
    Pending pending[32];
    uint32_t clock[32][32];  // clock[l][m]: the latest clock of lane m whose accesses lane l is ordered after
};

struct Block {
    int slot;
    bool active = false;
    dim3 index;
    uint64_t linear;
    uint32_t serial, epoch;  // serials grow over all launches; the epoch counts the block's barriers
    int n_threads, live, waiting;
    const Site* barrier;  // on the stack of the first thread that waits
    int votes, total;     // of the barrier being filled; of the last one
    unsigned ready_warps;
    unsigned char *arena, *dynamic;
    size_t dynamic_bytes, static_bytes, static_used;
    std::map<const void*, size_t> statics;  // offsets by tag
    Warp warps[kMaxWarps];
    Lane lanes[kMaxThreads];
};

using Clock = std::vector<uint64_t>;  // of each stream, how much of its work comes before

/// Where and when something runs: the work of number clock[stream] in that stream.
struct Origin {
    int device = 0;
    unsigned stream = 0;
    Clock clock{1};
    const void* arguments = nullptr;  // of a kernel
    size_t argument_bytes = 0;
};

/// By xorshift64*.
struct Random {
    uint64_t state = 1;

    void seed(uint64_t seed) { state = (seed + 1) * 0x9E3779B97F4A7C15ull | 1; }
    /// Less than n <= 2^32.
    uint64_t draw(uint64_t n) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (state * 0x2545F4914F6CDD1Dull >> 32) * n >> 32;
    }
};

struct Finding {
    std::string text;  // %0 and %1 stand for the source lines of pcs, %k for the kernel
    uintptr_t pcs[2] = {0, 0};
};

struct Engine {
    Config config;
    Shape shape;
    const Task* task = nullptr;
    const Origin* origin = nullptr;
    Lane* current = nullptr;             // null outside kernels
    const Block* in_builtins = nullptr;  // whose index blockIdx is
    Context main;
    char* stacks = nullptr;
    unsigned char* arenas = nullptr;
    std::unique_ptr<Block> slots[kMaxResident];
    int n_slots = 0;
    uint32_t next_serial = 1, first_serial = 1;  // of this launch
    Random random;
    std::vector<Finding> findings;
    bool fatal = false;
    const Copy* landing = nullptr;  // what the engine touches for a kernel just now: this copy,
    uintptr_t accessing = 0;        // or what the caller at this address wanted
};
extern EMU_API Engine engine;
/// Whether this thread runs kernels just now; others may be in instrumented code that starts some.
extern __thread EMU_API bool is_running __attribute__((tls_model("initial-exec")));

/// Records a finding and abandons the launch: does not return inside a kernel, throws outside.
[[noreturn]] EMU_API void fail(const std::string& text, uintptr_t pc = 0, uintptr_t other_pc = 0);
/// Records a finding and goes on; findings of the same two lines count once.
EMU_API void report(const std::string& text, uintptr_t pc, uintptr_t other_pc);
EMU_API std::string thread_name(const Lane& lane);
EMU_API std::string place(const Site& site);
/// "; n threads in ..." for all threads of a block, but for one.
EMU_API std::string whereabouts(const Block& block, const Lane* but = nullptr);
EMU_API std::string source_line(uintptr_t pc, bool callers);
EMU_API std::string kernel_name(const void* kernel);
EMU_API __attribute__((format(printf, 1, 2))) std::string format(const char* pattern, ...);

// schedule.cpp
EMU_API void lane_main();  // what a fibre does each time
EMU_API void switch_context(Context& from, Context& to);
EMU_API Lane* next_lane(bool next_slot = false);
EMU_API void make_current(Lane* lane);
EMU_API void make_ready(Warp& warp, Block& block, unsigned lanes);
EMU_API void suspend(bool next_slot = false);
[[noreturn]] EMU_API void leave_for_main();
EMU_API void release_barrier(Block& block);
EMU_API void collective(unsigned mask, Combine combine, void* record, const Site& site);

/// A device of the architecture that is set, of those on sale the smaller ones.
EMU_API const cudaDeviceProp& chip();
EMU_API void check_shape(const Shape& shape);
EMU_API void check_shared(size_t static_bytes, size_t dynamic_bytes);
EMU_API void set_config(const Config& config);
EMU_API void run(const Shape& shape, const Task& task, const Origin& origin);

/// As long as it lives, a fault in a kernel becomes a finding (fault.cpp).
class EMU_API FaultHandler {
    struct sigaction action_;
    stack_t stack_;

   public:
    FaultHandler();
    ~FaultHandler();
};

/// As long as it lives, and so many seconds of this thread's processor time have passed, a kernel is ended
/// (watchdog.cpp).
class EMU_API Watchdog {
    timer_t timer_;
    struct sigaction action_;

   public:
    explicit Watchdog(double seconds);
    ~Watchdog();
};
extern EMU_API std::atomic<bool> overdue;
[[noreturn]] EMU_API void fail_overdue(const Site* site, uintptr_t pc);
inline void look_at_watch(const Site* site, uintptr_t pc = 0) {
    if (__builtin_expect(overdue.load(std::memory_order_relaxed), 0)) fail_overdue(site, pc);
}

/// In a signal handler: where the code was, 0 if that cannot be told.
EMU_API uintptr_t interrupted_at(const void* state);

inline bool in_arenas(const void* p) {
    return uintptr_t(p) - uintptr_t(engine.arenas) < kMaxResident * kArenaPitch;
}
inline bool in_stacks(const void* p) {
    return uintptr_t(p) - uintptr_t(engine.stacks) < size_t(kMaxResident) * kMaxThreads * kStackPitch;
}

struct HostCopy {  // the part of an allocation that was copied from or to, and by whom
    uintptr_t begin, end;
    bool writes;
    unsigned stream;
    uint64_t number;
};

struct Allocation {
    uintptr_t begin, end;  // what a kernel may touch
    std::string name;
    void* mapping;
    size_t mapped;
    int device;
    CUstream_st* stream;                         // that it belongs to
    std::vector<CUstream_st*> shared_with = {};  // others that use it
    void* shadow = nullptr;                      // of the checked build, made at the first access
    size_t shadow_bytes = 0;
    std::vector<HostCopy> copies = {};  // of the checked build
};
/// The allocation that holds `p`, or that has it within a page of its ends.
EMU_API Allocation* find_allocation(uintptr_t p);
EMU_API void* map_memory(size_t bytes, const std::string& name, int device, CUstream_st* stream);
EMU_API void unmap_memory(uintptr_t begin);
EMU_API size_t device_bytes(int device);
/// Lets memory of other devices than this fault; -1: none. Memory of a single device costs nothing.
EMU_API void reach_device(int device);
/// What an address is said to be where no allocation holds it: of one that has been freed, or just the address.
EMU_API std::string name_address(uintptr_t p);
inline bool on_this_device(const Allocation& a) {
    return a.device == engine.origin->device;
}

#define EMU_PC (reinterpret_cast<uintptr_t>(__builtin_return_address(0)))
namespace check {  // for if (kChecked)
enum Kind : uint8_t { kRead = 0, kWrite = 1, kAtomic = 2, kCopy = 4 };
EMU_API void access(const void* p, size_t bytes, unsigned kind, uintptr_t pc);
EMU_API void carved(Block& block, size_t offset, size_t bytes);
EMU_API void copy_started(const Copy& copy);
EMU_API void copy_landed(const Copy& copy);
EMU_API void launch_started();
/// A copy, fill or release outside kernels.
EMU_API void range_touched(Allocation& allocation, uintptr_t begin, uintptr_t end, bool writes, const Origin& origin,
                           const char* what);
EMU_API void block_started(Block& block);
EMU_API void block_finished(Block& block);
EMU_API void drop_shadow(Allocation& allocation);
}  // namespace check

}  // namespace emu
