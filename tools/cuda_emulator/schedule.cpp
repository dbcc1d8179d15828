// Who runs next, and what threads wait for: barriers of a block and collectives of a warp.
//
// Turns. Nobody is interrupted: a lane runs until it has to wait (at a barrier, or in a collective until all lanes of
// the mask have come), until it has returned from the kernel, or until it comes to an atomic on global memory while
// other blocks are resident (access.cpp). Then suspend() picks a lane that can go on and switches to it directly. Lanes
// that can go on and do not run are a bit in their warp's `ready`; a warp that has some is a bit in its block's
// `ready_warps`.
//
// Orders. "forward" takes the first of these bits, "reverse" the last: a warp runs on while it can, then the next warp
// of its block, then another block. "random" draws slot, warp and lane anew at each switch, and lets whoever completes
// a barrier or a collective wait for its turn like the others. The blocks of the grid start in that order, too. A
// kernel whose result depends on the order has a race, adds floats by atomics, or counts on what no chip promises;
// tests run every kernel in several orders and compare bits.
//
// Repeatable. Nothing but the configuration decides: there is one thread and no clock, and random numbers come from a
// generator that each launch starts from the seed. So a failure under a seed comes again under that seed.
//
// Collectives. Each lane that comes leaves a record, on its own stack, where it stays while the lane waits; the last
// one of the mask runs `combine` over all records, which also writes the results into them, and makes the others ready.
// The first to come opens a Pending entry of its warp. One whose mask overlaps that of an entry but is not the same, or
// that calls from another line or for another operation, is a divergent warp, and so is a mask that names a lane that
// has exited. That it has to be the same line is stricter than CUDA, which asks for the same intrinsic and mask. A
// barrier is the same for a block, with a counter in place of a mask.
#include <ucontext.h>

#include "engine.h"

#ifdef __BMI2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <utility>

namespace emu {

namespace {

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
    return nth_bit(bits, int(engine.random.draw(unsigned(__builtin_popcount(bits)))));
}

/// A ready lane of a warp that has some, taken off the ready lists.
Lane* take_lane(Block& block, Warp& warp) {
    const int lane = choose(warp.ready);
    warp.ready &= ~(1u << lane);
    if (!warp.ready) block.ready_warps &= ~(1u << warp.id);
    return &block.lanes[warp.id * 32 + lane];
}

}  // namespace

namespace {

/// The first frame of a fibre, which stays on its stack: other threads begin there again.
void fibre_main() {
    Context& own = engine.current->context;
    own.begun = true;
    if (__builtin_setjmp(own.beginning)) engine.current->context.unused = nullptr;
    lane_main();
}

[[noreturn]] __attribute__((noinline)) void go_on(Context& to) {
    if (!to.unused) __builtin_longjmp(to.place, 1);
    if (to.begun) __builtin_longjmp(to.beginning, 1);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = std::exchange(to.unused, nullptr);
    start.uc_stack.ss_size = to.bytes;
    makecontext(&start, fibre_main, 0);
    setcontext(&start);
    __builtin_unreachable();
}

}  // namespace

/// Stops here, and goes on where the other one stopped: by the compiler's setjmp, as each swapcontext is a system call.
__attribute__((noinline)) void switch_context(Context& from, Context& to) {
    if (__builtin_setjmp(from.place)) return;
    go_on(to);
}

/// The lane to run next, taken off the ready lists; null when none is ready. A warp runs on until it has to wait,
/// except in random order, and except when it lets the block in the next slot go first.
Lane* next_lane(bool next_slot) {
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
void suspend(bool next_slot) {
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

void leave_for_main() {
    Context forgotten;
    engine.current = nullptr;
    switch_context(forgotten, engine.main);
    __builtin_unreachable();
}

void release_barrier(Block& block) {
    block.total = block.votes;
    block.votes = block.waiting = 0;
    ++block.epoch;
    for (int w = 0; w * 32 < block.n_threads; ++w) make_ready(block.warps[w], block, block.warps[w].live);
}

// ---- block barriers ----

int barrier(int predicate, const char* file, int line) {
    Lane& self = *engine.current;
    Block& block = *self.block;
    const Site site{"__syncthreads", file, line};
    look_at_watch(&site);
    if (!block.waiting) block.barrier = &site;
    if (!same_place(*block.barrier, site))
        fail("divergent barrier: " + thread_name(self) + " in " + place(site) + " while " +
             std::to_string(block.waiting) + " threads wait in " + place(*block.barrier));
    ++block.waiting;
    block.votes += predicate != 0;
    self.site = &site;
    self.state = State::kInBarrier;
    if (block.waiting < block.n_threads) {
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
    return block.total;
}

// ---- warp collectives ----

/// Every lane of `mask` leaves its record; the last one to come runs `combine` over them, and all go on.
void collective(unsigned mask, Combine combine, void* record, const Site& site) {
    Lane& self = *engine.current;
    Warp& warp = *self.warp;
    const unsigned bit = 1u << (self.id & 31);
    look_at_watch(&site);
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
struct Record {
    uint64_t bits, result;
    int source;
};
Record& at(void* const* records, int lane) {
    return *static_cast<Record*>(records[lane]);
}
}  // namespace

uint64_t shuffle(unsigned mask, uint64_t bits, int source, const char* what, const char* file, int line) {
    Record record{bits, 0, source};
    const Site site{what, file, line};
    if (!(mask >> source & 1))
        fail("divergent warp: " + thread_name(*engine.current) +
             format(" reads lane %d, which is not in mask 0x%08x, in ", source, mask) + place(site));
    const Combine exchange = [](Warp&, void* const* records, unsigned lanes) {
        for (unsigned m = lanes; m; m &= m - 1) {
            Record& r = at(records, __builtin_ctz(m));
            r.result = at(records, r.source).bits;
        }
    };
    collective(mask, exchange, &record, site);
    return record.result;
}

unsigned ballot(unsigned mask, int predicate, const char* file, int line) {
    Record record{predicate != 0, 0, 0};
    const Combine count = [](Warp&, void* const* records, unsigned lanes) {
        unsigned votes = 0;
        for (unsigned m = lanes; m; m &= m - 1)
            votes |= unsigned(at(records, __builtin_ctz(m)).bits) << __builtin_ctz(m);
        for (unsigned m = lanes; m; m &= m - 1) at(records, __builtin_ctz(m)).result = votes;
    };
    collective(mask, count, &record, {"__ballot_sync", file, line});
    return unsigned(record.result);
}

}  // namespace emu
