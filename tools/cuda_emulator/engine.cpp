// Launches: how a grid is run, and what becomes of what is found.
//
// Everything happens on the thread that calls run() (whoever made the runtime work, see runtime.cpp, which also keeps
// other threads out), and a launch is over when it returns. A CUDA thread is a `Lane` with a fibre: a stack of its own
// and the place where it stopped (Context). Each fibre calls the kernel once (lane_main), with the launch's
// arguments. threadIdx and its like are one struct, `builtins`, that is written anew whenever another lane goes on.
//
// Who owns what. A `Block` is one of up to kMaxResident slots, in which the blocks of the grid take turns;
// resident_blocks of them are in use. A slot owns 32 warps, 1024 lanes, as many stacks of 64 KiB (below each a page
// that faults) and an arena, the shared memory of its present block. In the arena static arrays come first, then, from
// kStaticRegion on, dynamic shared memory. The plain build puts the latter at the end, so that the byte behind it is in
// a page that faults; the checked build leaves red zones between arrays instead. When a block starts its dynamic shared
// memory is filled with 0xff, NaN as a float; a static array is when its block first comes to it. Stacks and arenas are
// reserved once and never given back.
//
// run_blocks() runs outside of fibres. It fills free slots with blocks, picks a lane and switches to it. Lanes then
// switch to each other (schedule.cpp) and come back here when a block has ended, when no lane can go on, or when the
// launch is given up. No lane can go on while some live: they wait for others that will never come, a divergent barrier
// or warp, and stuck() says where all of them are.
//
// Findings. report() notes one and lets the kernel go on, up to eight; fail() gives up the launch where going on makes
// no sense. It leaves the fibre for good: nothing on the stacks of a launch given up is destroyed. Kernels have nothing
// there that needs it, and what the engine itself loses is the few bytes of a message. Either way run() throws an Error
// in the end with all findings, their addresses turned into source lines. The next launch starts all slots anew.
#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>

namespace emu {

__thread Builtins builtins __attribute__((tls_model("initial-exec")));
__thread bool is_running __attribute__((tls_model("initial-exec"))) = false;
Engine engine;
std::function<void(const Launched&)> elsewhere;

void lane_main() {
    engine.task->run(engine.task->arguments);
    Lane& self = *engine.current;
    Block& block = *self.block;
    if (!self.copies.empty())
        fail("copy never waited for: cp.async of " + thread_name(self) + " at " + place(self.copies[0].site));
    self.state = State::kExited;
    self.warp->live &= ~(1u << (self.id & 31));
    --block.live;
    if (!block.live) leave_for_main();
    suspend();
    __builtin_unreachable();
}

namespace {

// ---- blocks ----

void start_block(Block& block, uint64_t linear) {
    const dim3 &grid = engine.shape.grid, &size = engine.shape.block;
    engine.in_builtins = nullptr;
    block.active = true;
    block.linear = linear;
    block.index = dim3(unsigned(linear % grid.x), unsigned(linear / grid.x % grid.y),
                       unsigned(linear / (uint64_t(grid.x) * grid.y)));
    block.serial = engine.next_serial++;
    block.epoch = 0;
    block.n_threads = block.live = int(size.x * size.y * size.z);
    block.waiting = block.votes = block.total = 0;
    block.ready_warps = 0;
    block.statics.clear();
    block.static_bytes = block.static_used = 0;
    block.arena = engine.arenas + block.slot * kArenaPitch;
    block.dynamic_bytes = engine.shape.smem;
    // The plain build has the array end at the page that faults; the checked one leaves room for red zones.
    block.dynamic =
        kChecked ? block.arena + kStaticRegion : block.arena + kArena - (block.dynamic_bytes + 15) / 16 * 16;
    std::memset(block.dynamic, 0xff,
                kChecked ? size_t(block.arena + kArena - block.dynamic) : (block.dynamic_bytes + 15) / 16 * 16);
    for (int w = 0; w * 32 < block.n_threads; ++w) {
        Warp& warp = block.warps[w];
        const int lanes = std::min(32, block.n_threads - w * 32);
        warp.id = w;
        warp.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
        warp.ready = 0;
        warp.n_pending = 0;
        if (kChecked) std::memset(warp.clock, 0, sizeof warp.clock);
        make_ready(warp, block, warp.live);
    }
    for (int t = 0; t < block.n_threads; ++t) {
        Lane& lane = block.lanes[t];
        char* const bottom = engine.stacks + (size_t(block.slot) * kMaxThreads + t) * kStackPitch + kPage;
        // Stacks start on different cache sets: all at one offset of a page, they would evict each other.
        char* const top = bottom + kStack - 64 - (t * 5 % 16) * 256;
        lane.block = &block;
        lane.warp = &block.warps[t / 32];
        lane.id = t;
        lane.index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
        lane.state = State::kRunnable;
        lane.copies.clear();
        lane.groups = 0;
        lane.context.unused = bottom;
        lane.context.bytes = size_t(top - bottom);
    }
    if (kChecked) check::block_started(block);
}

/// Where the threads of a block that cannot go on are.
std::string stuck(const Block& block) {
    const bool barrier = std::any_of(block.lanes, block.lanes + block.n_threads,
                                     [](const Lane& lane) { return lane.state == State::kInBarrier; });
    return format("%s in block (%u, %u, %u): ", barrier ? "divergent barrier" : "divergent warp", block.index.x,
                  block.index.y, block.index.z) +
           whereabouts(block).substr(2);
}

void run_blocks() {
    const uint64_t n_blocks = uint64_t(engine.shape.grid.x) * engine.shape.grid.y * engine.shape.grid.z;
    std::vector<uint64_t> order;
    if (engine.config.order != Order::kForward) {
        order.resize(n_blocks);
        std::iota(order.rbegin(), order.rend(), 0);
        if (engine.config.order == Order::kRandom)
            for (uint64_t i = n_blocks; i > 1; --i) std::swap(order[i - 1], order[engine.random.draw(i)]);
    }
    for (uint64_t started = 0;;) {
        int active = 0;
        for (int s = 0; s < engine.n_slots; ++s) {
            Block& block = *engine.slots[s];
            if (block.active && !block.live) {
                block.active = false;
                if (kChecked) check::block_finished(block);
            }
            if (!block.active && started < n_blocks) {
                start_block(block, order.empty() ? started : order[started]);
                ++started;
            }
            active += block.active;
        }
        if (!active) return;
        Lane* const next = next_lane();
        if (!next) {
            for (int s = 0; s < engine.n_slots; ++s)
                if (engine.slots[s]->active) engine.findings.push_back({stuck(*engine.slots[s])});
            return;
        }
        make_current(next);
        switch_context(engine.main, next->context);
        if (engine.fatal) return;
    }
}

}  // namespace

// ---- what a launch may ask for ----

void check_shape(const Shape& shape) {
    const auto bad = [](const dim3& d, unsigned x, unsigned y, unsigned z) {
        return !d.x || !d.y || !d.z || d.x > x || d.y > y || d.z > z;
    };
    const dim3 &g = shape.grid, &b = shape.block;
    if (bad(g, 0x7fffffff, 65535, 65535)) fail(format("limit: a grid of (%u, %u, %u) blocks", g.x, g.y, g.z));
    if (bad(b, 1024, 1024, 64) || uint64_t(b.x) * b.y * b.z > kMaxThreads)
        fail(format("limit: a block of (%u, %u, %u) threads", b.x, b.y, b.z));
}

namespace {
constexpr size_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB;
constexpr cudaDeviceProp kChips[] = {
    {"emulated sm_75", 7, 5, 40, 1024, 65536, 4 * kMiB, 64 * kKiB, 0, 64 * kKiB, 16 * kGiB},
    {"emulated sm_80", 8, 0, 108, 2048, 65536, 40 * kMiB, 164 * kKiB, kKiB, 163 * kKiB, 40 * kGiB},
    {"emulated sm_86", 8, 6, 28, 1536, 65536, 3 * kMiB, 100 * kKiB, kKiB, 99 * kKiB, 12 * kGiB},
    {"emulated sm_89", 8, 9, 58, 1536, 65536, 48 * kMiB, 100 * kKiB, kKiB, 99 * kKiB, 24 * kGiB},
    {"emulated sm_90", 9, 0, 132, 2048, 65536, 50 * kMiB, 228 * kKiB, kKiB, 227 * kKiB, 80 * kGiB},
    {"emulated sm_100", 10, 0, 148, 2048, 65536, 126 * kMiB, 228 * kKiB, kKiB, 227 * kKiB, 180 * kGiB},
    {"emulated sm_120", 12, 0, 70, 1536, 65536, 48 * kMiB, 100 * kKiB, kKiB, 99 * kKiB, 16 * kGiB},
};
const cudaDeviceProp* chip_of(int architecture) {
    return std::find_if(std::begin(kChips), std::end(kChips),
                        [&](const cudaDeviceProp& c) { return 10 * c.major + c.minor == architecture; });
}
}  // namespace

const cudaDeviceProp& chip() {
    return *chip_of(engine.config.architecture);
}

bool is_sm_75() {
    return engine.config.architecture < 80;
}

void check_shared(size_t static_bytes, size_t dynamic_bytes) {
    if (static_bytes > kStaticLimit)
        fail(format("limit: %zu bytes of static shared memory, at most %zu", static_bytes, kStaticLimit));
    if (static_bytes + dynamic_bytes > chip().sharedMemPerBlockOptin)
        fail(format("limit: %zu + %zu bytes of static and dynamic shared memory, at most %zu on sm_%d", static_bytes,
                    dynamic_bytes, chip().sharedMemPerBlockOptin, engine.config.architecture));
}

namespace {

void reserve_memory() {
    if (!engine.stacks) {
        const auto reserve = [](size_t bytes, int protection) {
            void* const p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) throw std::bad_alloc();
            return p;
        };
        engine.stacks = static_cast<char*>(reserve(size_t(kMaxResident) * kMaxThreads * kStackPitch, PROT_NONE));
        engine.arenas = static_cast<unsigned char*>(reserve(kMaxResident * kArenaPitch, PROT_NONE));
    }
    static int threads_of[kMaxResident] = {};
    const int n_threads = int(engine.shape.block.x * engine.shape.block.y * engine.shape.block.z);
    for (int s = 0; s < engine.n_slots; ++s) {
        if (!engine.slots[s]) {
            engine.slots[s] = std::make_unique<Block>();
            engine.slots[s]->slot = s;
            mprotect(engine.arenas + s * kArenaPitch, kArena, PROT_READ | PROT_WRITE);
        }
        for (int& t = threads_of[s]; t < n_threads; ++t)
            mprotect(engine.stacks + (size_t(s) * kMaxThreads + t) * kStackPitch + kPage, kStack,
                     PROT_READ | PROT_WRITE);
    }
}

std::string message(const std::vector<Finding>& findings) {
    std::string text;
    for (const Finding& f : findings) {
        std::string line = f.text;
        for (int i = 0; i < 2; ++i) {
            const size_t at = line.find("%" + std::to_string(i));
            if (at != std::string::npos) line.replace(at, 2, source_line(f.pcs[i], /*callers=*/true));
        }
        const size_t at = line.find("%k");
        if (at != std::string::npos) line.replace(at, 2, kernel_name(engine.shape.kernel));
        text += (text.empty() ? "" : "\n") + line;
    }
    return text;
}

[[noreturn]] void throw_findings() {
    std::vector<Finding> findings;
    findings.swap(engine.findings);
    throw Error(message(findings));
}

}  // namespace

// ---- findings ----

std::string format(const char* pattern, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

std::string place(const Site& site) {
    return format("%s at %s:%d", site.what, site.file, site.line);
}

std::string thread_name(const Lane& lane) {
    const dim3& b = lane.block->index;
    return format("thread (%u, %u, %u) of block (%u, %u, %u)", lane.index.x, lane.index.y, lane.index.z, b.x, b.y, b.z);
}

std::string whereabouts(const Block& block, const Lane* but) {
    std::map<std::string, int> where;
    for (const Lane* lane = block.lanes; lane != block.lanes + block.n_threads; ++lane)
        if (lane != but)
            ++where[lane->state == State::kExited     ? "exited"
                    : lane->state == State::kRunnable ? "can run"
                                                      : "in " + place(*lane->site)];
    std::string text;
    for (const auto& [what, count] : where) text += "; " + std::to_string(count) + " threads " + what;
    return text;
}

void fail(const std::string& text, uintptr_t pc, uintptr_t other_pc) {
    engine.findings.push_back({text, {pc, other_pc}});
    if (!engine.current) throw_findings();
    engine.fatal = true;
    leave_for_main();
}

void report(const std::string& text, uintptr_t pc, uintptr_t other_pc) {
    for (const Finding& f : engine.findings)
        if (f.pcs[0] == pc && f.pcs[1] == other_pc) return;
    engine.findings.push_back({text, {pc, other_pc}});
    if (engine.findings.size() < 8) return;
    engine.fatal = true;
    leave_for_main();
}

// ---- launch ----

void set_config(const Config& config) {
    if (config.resident_blocks < 1 || config.resident_blocks > kMaxResident)
        throw std::invalid_argument(
            format("resident_blocks must be 1 to %d, got %d", kMaxResident, config.resident_blocks));
    if (config.devices < 1 || config.devices > 8)
        throw std::invalid_argument(format("devices must be 1 to 8, got %d", config.devices));
    if (chip_of(config.architecture) == std::end(kChips))
        throw std::invalid_argument(
            format("architecture must be 75, 80, 86, 89, 90, 100 or 120, got %d", config.architecture));
    if (!(config.seconds > 0)) throw std::invalid_argument(format("seconds must be above 0, got %g", config.seconds));
    engine.config = config;
}

const Config& configuration() {
    return engine.config;
}

void run(const Shape& shape, const Task& task, const Origin& origin) {
    engine.current = nullptr;
    engine.findings.clear();
    engine.shape = shape;
    engine.task = &task;
    engine.origin = &origin;
    engine.fatal = false;
    engine.landing = nullptr;
    engine.accessing = 0;
    engine.random.seed(engine.config.seed);
    engine.first_serial = engine.next_serial;
    const uint64_t n_blocks = uint64_t(shape.grid.x) * shape.grid.y * shape.grid.z;
    engine.n_slots = int(std::min<uint64_t>(n_blocks, uint64_t(engine.config.resident_blocks)));
    reserve_memory();
    for (int s = 0; s < engine.n_slots; ++s) {
        engine.slots[s]->active = false;
        engine.slots[s]->ready_warps = 0;
    }
    builtins.block_size = {shape.block.x, shape.block.y, shape.block.z};
    builtins.grid_size = {shape.grid.x, shape.grid.y, shape.grid.z};
    if (kChecked) check::launch_started();
    {
        FaultHandler handler;
        Watchdog watchdog(engine.config.seconds);
        reach_device(origin.device);
        is_running = true;
        run_blocks();
        is_running = false;
        reach_device(-1);
    }
    engine.current = nullptr;
    if (!engine.findings.empty()) throw_findings();
}

}  // namespace emu
