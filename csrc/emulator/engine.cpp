// The scheduler: one fibre per CUDA thread, all on the calling thread; barriers, warp collectives, copies in flight,
// shared memory, and what all of these refuse.
#define EMU_DEFINE_SWITCH
#include "engine.h"

#ifdef __BMI2__
#include <immintrin.h>
#endif
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

namespace emu {

__thread Builtins builtins __attribute__((tls_model("initial-exec")));
Engine engine;

namespace {

std::mutex one_launch_at_a_time;

std::string format(const char* pattern, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

bool same_place(const Site& a, const Site& b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// ---- switching ----

int nth_bit(unsigned bits, int n) {
#ifdef __BMI2__
    return __builtin_ctz(_pdep_u32(1u << n, bits));
#else
    while (n--) bits &= bits - 1;
    return __builtin_ctz(bits);
#endif
}

int choose(unsigned bits) {
    if (engine.config.order == Order::kForward) return __builtin_ctz(bits);
    if (engine.config.order == Order::kReverse) return 31 - __builtin_clz(bits);
    return nth_bit(bits, int(engine.draw(unsigned(__builtin_popcount(bits)))));
}

/// A ready lane of a warp that has some, taken off the ready lists.
Lane* take_lane(Block& block, Warp& warp) {
    const int lane = choose(warp.ready);
    warp.ready &= ~(1u << lane);
    if (!warp.ready) block.ready_warps &= ~(1u << warp.id);
    return &block.lanes[warp.id * 32 + lane];
}

/// The lane to run next, taken off the ready lists; null when none is ready. A warp runs on until it has to wait,
/// except in random order, and except when it lets the block in the next slot go first.
Lane* next_lane(bool next_slot = false) {
    Lane* const self = engine.current;
    const bool random = engine.config.order == Order::kRandom;
    if (!random && !next_slot && self && self->warp->ready) return take_lane(*self->block, *self->warp);
    Block* block = self ? self->block : nullptr;
    if (random || next_slot || !block || !block->ready_warps) {
        unsigned ready = 0;
        for (int s = 0; s < engine.n_slots; ++s) ready |= unsigned(engine.slots[s]->ready_warps != 0) << s;
        if (!ready) return nullptr;
        if (const unsigned later = next_slot ? ready & (~1u << block->slot) : 0) ready = later & -later;
        block = engine.slots[choose(ready)].get();
    }
    return take_lane(*block, block->warps[choose(block->ready_warps)]);
}

void make_current(Lane* lane) {
    engine.current = lane;
    lane->state = State::kRunnable;
    builtins.thread = lane->index;
    builtins.lane = lane->id & 31;
    if (lane->block == engine.in_builtins) return;
    engine.in_builtins = lane->block;
    builtins.block = {lane->block->index.x, lane->block->index.y, lane->block->index.z};
}

/// Runs something else until somebody makes this lane ready and its turn comes.
void suspend(bool next_slot = false) {
    Lane* const self = engine.current;
    Lane* const next = next_lane(next_slot);
    if (next == self) {
        self->state = State::kRunnable;
    } else if (next) {
        make_current(next);
        switch_context(self->context, next->context);
    } else {
        engine.current = nullptr;
        switch_context(self->context, engine.main);
    }
}

void make_ready(Warp& warp, Block& block, unsigned lanes) {
    warp.ready |= lanes;
    if (lanes) block.ready_warps |= 1u << warp.id;
}

[[noreturn]] void leave_for_main() {
    Context forgotten;
    engine.current = nullptr;
    switch_context(forgotten, engine.main);
    __builtin_unreachable();
}

void release_barrier(Block& block) {
    block.total = block.votes;
    block.waiting_total = block.waiting;
    block.votes = block.waiting = 0;
    ++block.epoch;
    for (int w = 0; w * 32 < block.n_threads; ++w) make_ready(block.warps[w], block, block.warps[w].live);
}

void lane_main() {
    engine.entry(engine.argument);
    Lane& self = *engine.current;
    Block& block = *self.block;
    if (!self.copies.empty())
        fail("copy never waited for: cp.async of " + thread_name(self) + " at " + place(self.copies[0].site));
    self.state = State::kExited;
    self.warp->live &= ~(1u << (self.id & 31));
    --block.live;
    if (engine.config.allow_exited && block.waiting && block.waiting == block.live) release_barrier(block);
    if (!block.live) leave_for_main();
    suspend();
    __builtin_unreachable();
}

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
        prepare_context(lane.context, top, size_t(top - bottom), lane_main);
    }
#ifdef EMU_CHECKED
    check::block_started(block);
#endif
}

/// Where the threads of a block that cannot go on are.
std::string stuck(const Block& block) {
    std::map<std::string, int> where;
    bool barrier = false;
    for (int t = 0; t < block.n_threads; ++t) {
        const Lane& lane = block.lanes[t];
        barrier |= lane.state == State::kInBarrier;
        ++where[lane.state == State::kExited ? "exited" : "in " + place(*lane.site)];
    }
    std::string text = format("%s in block (%u, %u, %u): ", barrier ? "divergent barrier" : "divergent warp",
                              block.index.x, block.index.y, block.index.z);
    const char* separator = "";
    for (const auto& [what, count] : where) {
        text += separator + std::to_string(count) + " threads " + what;
        separator = "; ";
    }
    return text;
}

void run_blocks() {
    const uint64_t n_blocks = uint64_t(engine.shape.grid.x) * engine.shape.grid.y * engine.shape.grid.z;
    std::vector<uint64_t> order;
    if (engine.config.order != Order::kForward) {
        order.resize(n_blocks);
        std::iota(order.rbegin(), order.rend(), 0);
        if (engine.config.order == Order::kRandom)
            for (uint64_t i = n_blocks; i > 1; --i) std::swap(order[i - 1], order[engine.draw(i)]);
    }
    for (uint64_t started = 0;;) {
        int active = 0;
        for (int s = 0; s < engine.n_slots; ++s) {
            Block& block = *engine.slots[s];
            if (block.active && !block.live) {
                block.active = false;
#ifdef EMU_CHECKED
                check::block_finished(block);
#endif
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

size_t shared_limit() {
    return size_t(engine.config.architecture == 80 ? 163 : 227) * 1024;
}

void check_shared(size_t static_bytes, size_t dynamic_bytes) {
    if (static_bytes > kStaticLimit)
        fail(format("limit: %zu bytes of static shared memory, at most %zu", static_bytes, kStaticLimit));
    if (static_bytes + dynamic_bytes > shared_limit())
        fail(format("limit: %zu + %zu bytes of static and dynamic shared memory, at most %zu on sm_%d", static_bytes,
                    dynamic_bytes, shared_limit(), engine.config.architecture));
}

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

// ---- faults: an access beyond an array that ends at a guard page, or a stack that is full ----

struct sigaction previous_segv;
Finding fault;

void leave_after_fault() {
    engine.findings.push_back(fault);
    engine.fatal = true;
    leave_for_main();
}

bool describe_fault(uintptr_t address) {
    Lane* const lane = engine.current;
    if (!lane) return false;
    if (in_stacks(reinterpret_cast<void*>(address)))
        fault.text = "stack overflow: " + thread_name(*lane) + " uses more than 64 KiB, at %0";
    else if (in_arenas(reinterpret_cast<void*>(address)))
        fault.text =
            format("out of bounds: access of %s, %td bytes behind the start of %zu bytes of dynamic shared memory",
                   thread_name(*lane).c_str(), address - uintptr_t(lane->block->dynamic), lane->block->dynamic_bytes) +
            ", at %0";
    else if (const Allocation* a = find_allocation(address))
        fault.text = format("out of bounds: access of %s, offset %td of buffer '%s' of %zu bytes",
                            thread_name(*lane).c_str(), address - a->begin, a->name.c_str(), a->end - a->begin) +
                     ", at %0";
    else
        fault.text = format("out of bounds: access of %s to address %p", thread_name(*lane).c_str(),
                            reinterpret_cast<void*>(address)) +
                     ", at %0";
    if (engine.landing) fault.text += " (copy issued at " + place(engine.landing->site) + ")";
    return true;
}

#if !defined(EMU_UCONTEXT) && defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
void on_fault(int, siginfo_t* info, void* state) {
    ucontext_t* const context = static_cast<ucontext_t*>(state);
    if (!describe_fault(uintptr_t(info->si_addr))) {
        sigaction(SIGSEGV, &previous_segv, nullptr);  // not ours: it happens again, under the old handler
        return;
    }
    char* const top =
        engine.stacks + (size_t(engine.current->block->slot) * kMaxThreads + engine.current->id + 1) * kStackPitch;
#if defined(__x86_64__)
    fault.pcs[0] = uintptr_t(context->uc_mcontext.gregs[REG_RIP]) + 1;
    context->uc_mcontext.gregs[REG_RIP] = greg_t(uintptr_t(&leave_after_fault));
    context->uc_mcontext.gregs[REG_RSP] = greg_t(uintptr_t(top - 64 - 8));
#else
    fault.pcs[0] = uintptr_t(context->uc_mcontext.pc) + 1;
    context->uc_mcontext.pc = uintptr_t(&leave_after_fault);
    context->uc_mcontext.sp = uintptr_t(top - 64);
#endif
}

class FaultHandler {
    stack_t previous_stack_;
    static inline char stack_[64 * 1024];

   public:
    FaultHandler() {
        stack_t own = {};
        own.ss_sp = stack_;
        own.ss_size = sizeof stack_;
        sigaltstack(&own, &previous_stack_);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_segv);
    }
    ~FaultHandler() {
        sigaction(SIGSEGV, &previous_segv, nullptr);
        sigaltstack(&previous_stack_, nullptr);
    }
};
#else
struct FaultHandler {};
#endif

std::string message(const std::vector<Finding>& findings) {
    std::string text;
    for (const Finding& f : findings) {
        std::string line = f.text;
        for (int i = 0; i < 2; ++i) {
            const size_t at = line.find("%" + std::to_string(i));
            if (at != std::string::npos) line.replace(at, 2, source_line(f.pcs[i], /*callers=*/true));
        }
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

std::string place(const Site& site) {
    return format("%s at %s:%d", site.what, site.file, site.line);
}

std::string thread_name(const Lane& lane) {
    const dim3& b = lane.block->index;
    return format("thread (%u, %u, %u) of block (%u, %u, %u)", lane.index.x, lane.index.y, lane.index.z, b.x, b.y, b.z);
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

void configure(const Config& config) {
    std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    if (config.resident_blocks < 1 || config.resident_blocks > kMaxResident)
        throw std::invalid_argument(
            format("resident_blocks must be 1 to %d, got %d", kMaxResident, config.resident_blocks));
    if (config.architecture != 80 && config.architecture != 90 && config.architecture != 100)
        throw std::invalid_argument(format("architecture must be 80, 90 or 100, got %d", config.architecture));
    engine.config = config;
}

const Config& configuration() {
    return engine.config;
}

void run(const Shape& shape, void (*entry)(void*), void* argument) {
    std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    engine.current = nullptr;
    engine.findings.clear();
    check_shape(shape);
    check_shared(0, shape.smem);
    engine.shape = shape;
    engine.entry = entry;
    engine.argument = argument;
    engine.fatal = false;
    engine.landing = nullptr;
    engine.random = (engine.config.seed + 1) * 0x9E3779B97F4A7C15ull | 1;
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
#ifdef EMU_CHECKED
    check::launch_started();
#endif
    {
        FaultHandler handler;
        run_blocks();
    }
    engine.current = nullptr;
    if (!engine.findings.empty()) throw_findings();
}

// ---- shared memory ----

unsigned char* dynamic_smem() {
    return engine.current->block->dynamic;
}

size_t note_carved(unsigned char* array, size_t bytes, size_t total, size_t rounded) {
    Block& block = *engine.current->block;
    if (total > (block.dynamic_bytes + 15) / 16 * 16)
        fail(
            format("limit: the kernel carves %zu bytes, %zu were asked for at the launch", total, block.dynamic_bytes));
#ifdef EMU_CHECKED
    if (array + bytes + kRedZone > block.arena + kArena) fail("limit: too many arrays in dynamic shared memory");
    check::carved(block, size_t(array - block.arena), bytes);
#else
    (void)array, (void)bytes;
#endif
    return rounded + kRedZone;
}

void* static_smem(const void* tag, size_t bytes, size_t alignment) {
    Block& block = *engine.current->block;
    for (const StaticArray& a : block.statics)
        if (a.tag == tag) return block.arena + a.offset;
    const size_t step = std::max<size_t>(alignment, 16), offset = (block.static_used + step - 1) / step * step;
    block.static_bytes += bytes;
    check_shared(block.static_bytes, block.dynamic_bytes);
    block.statics.push_back({tag, offset, bytes});
    block.static_used = offset + bytes + kRedZone;
    std::memset(block.arena + offset, 0xff, bytes);
#ifdef EMU_CHECKED
    check::carved(block, offset, bytes);
#endif
    return block.arena + offset;
}

// ---- block barriers ----

int barrier(int predicate, Vote result, const char* file, int line) {
    Lane& self = *engine.current;
    Block& block = *self.block;
    const Site site{"__syncthreads", file, line};
    if (!block.waiting) block.barrier = &site;
    if (!same_place(*block.barrier, site))
        fail("divergent barrier: " + thread_name(self) + " in " + place(site) + " while " +
             std::to_string(block.waiting) + " threads wait in " + place(*block.barrier));
    ++block.waiting;
    block.votes += predicate != 0;
    self.site = &site;
    self.state = State::kInBarrier;
    if (block.waiting < (engine.config.allow_exited ? block.live : block.n_threads)) {
        suspend();
    } else {
        release_barrier(block);
        if (engine.config.order == Order::kRandom) {
            suspend();
        } else {
            self.warp->ready &= ~(1u << (self.id & 31));
            if (!self.warp->ready) block.ready_warps &= ~(1u << self.warp->id);
            self.state = State::kRunnable;
        }
    }
    switch (result) {
        case Vote::kCount:
            return block.total;
        case Vote::kAnd:
            return block.total == block.waiting_total;
        default:
            return block.total != 0;
    }
}

// ---- warp collectives ----

/// Every lane of `mask` leaves its record; the last one to come runs `combine` over them, and all go on.
void collective(unsigned mask, Combine combine, void* record, const Site& site) {
    Lane& self = *engine.current;
    Warp& warp = *self.warp;
    const unsigned bit = 1u << (self.id & 31);
    if (!(mask & bit))
        fail("divergent warp: " + thread_name(self) + format(" is not in its own mask 0x%08x, in ", mask) +
             place(site));
    if (mask & ~warp.live)
        fail("divergent warp: " + thread_name(self) +
             format(" names lanes 0x%08x that have exited or never were, in ", mask & ~warp.live) + place(site));
    Pending* pending = warp.pending;
    Pending* end = pending + warp.n_pending;
    while (pending != end && !(pending->mask & mask)) ++pending;
    if (pending == end) {
        ++warp.n_pending;
        pending->mask = mask;
        pending->arrived = 0;
        pending->combine = combine;
        pending->site = &site;
    } else if (pending->mask != mask || pending->combine != combine || !same_place(*pending->site, site)) {
        fail("divergent warp: " + thread_name(self) + " in " + place(site) + format(" with mask 0x%08x", mask) +
             " while other lanes wait in " + place(*pending->site) + format(" with mask 0x%08x", pending->mask));
    }
    pending->records[self.id & 31] = record;
    pending->arrived |= bit;
    self.site = &site;
    self.state = State::kInCollective;
    if (pending->arrived != mask) return suspend();
    combine(warp, pending->records, mask);
    if (pending != --end) *pending = *end;
    --warp.n_pending;
    self.state = State::kRunnable;
    const bool random = engine.config.order == Order::kRandom;
    make_ready(warp, *self.block, random ? mask : mask & ~bit);
    if (random) suspend();
}

void sync_warp(unsigned mask, const char* file, int line) {
    const Combine join = [](Warp& warp, void* const*, unsigned lanes) {
        if (!kChecked) return;
        uint32_t latest[32] = {};
        for (unsigned m = lanes; m; m &= m - 1)
            for (int l = 0; l < 32; ++l) latest[l] = std::max(latest[l], warp.clock[__builtin_ctz(m)][l]);
        for (unsigned m = lanes; m; m &= m - 1) {
            const int l = __builtin_ctz(m);
            std::memcpy(warp.clock[l], latest, sizeof latest);
            ++warp.clock[l][l];
        }
    };
    collective(mask, join, nullptr, {"__syncwarp", file, line});
}

namespace {
struct ShuffleRecord {
    uint64_t bits, result;
    int source;
};
struct VoteRecord {
    uint64_t value;
    unsigned result;
};
template <class Record>
Record& at(void* const* records, int lane) {
    return *static_cast<Record*>(records[lane]);
}
}  // namespace

uint64_t shuffle(unsigned mask, uint64_t bits, int source, const char* what, const char* file, int line) {
    ShuffleRecord record{bits, 0, source};
    const Site site{what, file, line};
    if (!(mask >> source & 1))
        fail("divergent warp: " + thread_name(*engine.current) +
             format(" reads lane %d, which is not in mask 0x%08x, in ", source, mask) + place(site));
    const Combine exchange = [](Warp&, void* const* records, unsigned lanes) {
        for (unsigned m = lanes; m; m &= m - 1) {
            ShuffleRecord& r = at<ShuffleRecord>(records, __builtin_ctz(m));
            r.result = at<ShuffleRecord>(records, r.source).bits;
        }
    };
    collective(mask, exchange, &record, site);
    return record.result;
}

unsigned ballot(unsigned mask, int predicate, const char* what, const char* file, int line) {
    VoteRecord record{predicate != 0, 0};
    const Combine count = [](Warp&, void* const* records, unsigned lanes) {
        unsigned votes = 0;
        for (unsigned m = lanes; m; m &= m - 1)
            votes |= unsigned(at<VoteRecord>(records, __builtin_ctz(m)).value) << __builtin_ctz(m);
        for (unsigned m = lanes; m; m &= m - 1) at<VoteRecord>(records, __builtin_ctz(m)).result = votes;
    };
    collective(mask, count, &record, {what, file, line});
    return record.result;
}

unsigned match(unsigned mask, uint64_t bits, const char* file, int line) {
    VoteRecord record{bits, 0};
    const Combine compare = [](Warp&, void* const* records, unsigned lanes) {
        for (unsigned m = lanes; m; m &= m - 1) {
            VoteRecord& r = at<VoteRecord>(records, __builtin_ctz(m));
            for (unsigned o = lanes; o; o &= o - 1)
                r.result |= unsigned(at<VoteRecord>(records, __builtin_ctz(o)).value == r.value) << __builtin_ctz(o);
        }
    };
    collective(mask, compare, &record, {"__match_any_sync", file, line});
    return record.result;
}

unsigned reduce(unsigned mask, unsigned value, Reduce how, const char* file, int line) {
    struct Record {
        unsigned value, result;
        Reduce how;
    } record{value, 0, how};
    const Combine fold = [](Warp&, void* const* records, unsigned lanes) {
        const Record& first = at<Record>(records, __builtin_ctz(lanes));
        unsigned r = first.value;
        for (unsigned m = lanes & (lanes - 1); m; m &= m - 1) {
            const unsigned x = at<Record>(records, __builtin_ctz(m)).value;
            switch (first.how) {
                case Reduce::kAdd:
                    r += x;
                    break;
                case Reduce::kMin:
                    r = unsigned(std::min(int(r), int(x)));
                    break;
                case Reduce::kMax:
                    r = unsigned(std::max(int(r), int(x)));
                    break;
                case Reduce::kMinUnsigned:
                    r = std::min(r, x);
                    break;
                case Reduce::kMaxUnsigned:
                    r = std::max(r, x);
                    break;
                case Reduce::kAnd:
                    r &= x;
                    break;
                case Reduce::kOr:
                    r |= x;
                    break;
                case Reduce::kXor:
                    r ^= x;
                    break;
            }
        }
        for (unsigned m = lanes; m; m &= m - 1) at<Record>(records, __builtin_ctz(m)).result = r;
    };
    collective(mask, fold, &record, {"__reduce_sync", file, line});
    return record.result;
}

// ---- cp.async ----

void copy_async(void* dst, const void* src, int size, int valid, const char* file, int line) {
    Lane& self = *engine.current;
    const Site site{"cp.async", file, line};
    const Copy copy{static_cast<unsigned char*>(dst),
                    static_cast<const unsigned char*>(src),
                    size,
                    valid,
                    self.groups,
                    site,
                    EMU_PC};
    if (valid < 0 || valid > size)
        fail("limit: " + thread_name(self) + format(" reads %d of %d bytes in ", valid, size) + place(site));
    if ((uintptr_t(dst) | uintptr_t(src)) % unsigned(size))
        fail("misaligned: " + thread_name(self) + format(" copies %d bytes from %p to %p in ", size, src, dst) +
             place(site));
    if (!in_arenas(dst))
        fail("out of bounds: " + thread_name(self) + " copies to what is not shared memory, in " + place(site));
#ifdef EMU_CHECKED
    check::copy_started(copy);
#endif
    engine.landing = &copy;
    if (engine.config.eager_copies) {
        std::memcpy(dst, src, size_t(valid));
        std::memset(copy.dst + valid, 0, size_t(size - valid));
    } else {
        std::memset(dst, 0xff, size_t(size));
    }
    engine.landing = nullptr;
    self.copies.push_back(copy);
}

void commit_copies() {
    ++engine.current->groups;
}

void wait_copies(int groups_left) {
    Lane& self = *engine.current;
    size_t left = 0;
    for (Copy& copy : self.copies) {
        if (copy.group + unsigned(groups_left) >= self.groups) {
            self.copies[left++] = copy;
            continue;
        }
        engine.landing = &copy;
        if (!engine.config.eager_copies) {
            std::memcpy(copy.dst, copy.src, size_t(copy.valid));
            std::memset(copy.dst + copy.valid, 0, size_t(copy.size - copy.valid));
        }
        engine.landing = nullptr;
#ifdef EMU_CHECKED
        check::copy_landed(copy);
#endif
    }
    self.copies.resize(left);
}

// ---- single accesses ----

namespace {
void check_alignment(const void* p, int bytes, uintptr_t pc) {
    if (uintptr_t(p) % unsigned(bytes))
        fail("misaligned: " + thread_name(*engine.current) + format(" accesses %d bytes at %p, at %%0", bytes, p), pc);
}
template <class T>
T apply(T old, T value, Atomic op, T compare) {
    switch (op) {
        case Atomic::kAdd:
            return T(old + value);
        case Atomic::kMin:
            return std::min(old, value);
        case Atomic::kMax:
            return std::max(old, value);
        case Atomic::kExchange:
            return value;
        case Atomic::kAnd:
            return T(old & value);
        case Atomic::kOr:
            return T(old | value);
        case Atomic::kXor:
            return T(old ^ value);
        default:
            return old == compare ? value : old;
    }
}
void note_atomic(const void* p, int bytes, uintptr_t pc) {
    check_alignment(p, bytes, pc);
    if (engine.n_slots > 1 && !in_arenas(p)) {  // whoever waits for another block asks by atomics: let it come
        Lane& self = *engine.current;
        make_ready(*self.warp, *self.block, 1u << (self.id & 31));
        suspend(/*next_slot=*/true);
    }
#ifdef EMU_CHECKED
    check::access(p, size_t(bytes), check::kAtomic, pc);
#endif
}
}  // namespace

void read_vector(void* to, const void* from, int bytes) {
    const uintptr_t pc = uintptr_t(__builtin_return_address(0));
    check_alignment(from, bytes, pc);
#ifdef EMU_CHECKED
    check::access(from, size_t(bytes), check::kRead, pc);
#endif
    std::memcpy(to, from, size_t(bytes));
}

void write_vector(void* to, const void* from, int bytes) {
    const uintptr_t pc = uintptr_t(__builtin_return_address(0));
    check_alignment(to, bytes, pc);
#ifdef EMU_CHECKED
    check::access(to, size_t(bytes), check::kWrite, pc);
#endif
    std::memcpy(to, from, size_t(bytes));
}

uint32_t atomic_u32(uint32_t* p, uint32_t value, Atomic op, uint32_t compare) {
    note_atomic(p, 4, uintptr_t(__builtin_return_address(0)));
    const uint32_t old = *p;
    *p = apply(old, value, op, compare);
    return old;
}
uint64_t atomic_u64(uint64_t* p, uint64_t value, Atomic op, uint64_t compare) {
    note_atomic(p, 8, uintptr_t(__builtin_return_address(0)));
    const uint64_t old = *p;
    *p = apply(old, value, op, compare);
    return old;
}
int32_t atomic_s32(int32_t* p, int32_t value, Atomic op) {
    note_atomic(p, 4, uintptr_t(__builtin_return_address(0)));
    const int32_t old = *p;
    *p = int32_t(op == Atomic::kAdd ? uint32_t(old) + uint32_t(value) : uint32_t(apply(old, value, op, old)));
    return old;
}
float atomic_f32(float* p, float value) {
    note_atomic(p, 4, uintptr_t(__builtin_return_address(0)));
    const float old = *p;
    *p = old + value;
    return old;
}
double atomic_f64(double* p, double value) {
    note_atomic(p, 8, uintptr_t(__builtin_return_address(0)));
    const double old = *p;
    *p = old + value;
    return old;
}

unsigned take_ticket(unsigned* counter, const char* file, int line) {
    Block& block = *engine.current->block;
    barrier(0, Vote::kCount, file, line);
    if (engine.current->id == 0) {
        note_atomic(counter, 4, uintptr_t(__builtin_return_address(0)));
        block.ticket = (*counter)++;
#ifdef EMU_CHECKED
        check::ticket_taken(block, counter);
#endif
    }
    barrier(0, Vote::kCount, file, line);
    return block.ticket;  // written again behind the next call's first barrier
}

void trap(const char* file, int line) {
    fail("trap: " + thread_name(*engine.current) + " in " + place({"__trap", file, line}));
}

}  // namespace emu
