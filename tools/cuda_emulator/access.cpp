// Memory as kernels reach it: shared arrays, copies in flight, vector accesses and atomics.
//
// Plain loads and stores of a kernel are the machine's own; they do not come through here (the checked build sees them
// in checked.cpp). What does come here is what a plain load cannot say: that it is 16 bytes wide and aligned, atomic,
// or asynchronous.
//
// cp.async: the destination becomes 0xff at once, so that a read before the wait gives NaN, and the data are copied at
// the wait that covers the copy's group, as late as the rules allow; with eager_copies at once, as early as they allow.
// A kernel has to be right both ways.
//
// An atomic on global memory lets other resident blocks go first: who waits for another block does so by atomics, and
// would wait forever, as nobody is interrupted.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace emu {

// ---- shared memory ----

unsigned char* dynamic_smem() {
    return engine.current->block->dynamic;
}

size_t note_carved(unsigned char* array, size_t bytes, size_t total, size_t rounded) {
    Block& block = *engine.current->block;
    if (total > (block.dynamic_bytes + 15) / 16 * 16)
        fail(
            format("limit: the kernel carves %zu bytes, %zu were asked for at the launch", total, block.dynamic_bytes));
    if (kChecked) {
        if (array + bytes + kRedZone > block.arena + kArena) fail("limit: too many arrays in dynamic shared memory");
        check::carved(block, size_t(array - block.arena), bytes);
    }
    return rounded + kRedZone;
}

void* static_smem(const void* tag, size_t bytes, size_t alignment) {
    Block& block = *engine.current->block;
    if (const auto known = block.statics.find(tag); known != block.statics.end()) return block.arena + known->second;
    const size_t step = std::max<size_t>(alignment, 16), offset = (block.static_used + step - 1) / step * step;
    block.static_bytes += bytes;
    check_shared(block.static_bytes, block.dynamic_bytes);
    block.statics[tag] = offset;
    block.static_used = offset + bytes + kRedZone;
    std::memset(block.arena + offset, 0xff, bytes);
    if (kChecked) check::carved(block, offset, bytes);
    return block.arena + offset;
}

// ---- cp.async ----

static bool eager() {
    return engine.config.eager_copies || is_sm_75();
}

void Copy::land() const {
    if (real)
        std::memcpy(dst, src, 16);
    else
        std::memset(dst, 0, 16);
}

void copy_async(void* dst, const void* src, bool real, const char* file, int line) {
    Lane& self = *engine.current;
    const Site site{"cp.async", file, line};
    const Copy copy{
        static_cast<unsigned char*>(dst), static_cast<const unsigned char*>(src), real, self.groups, site, EMU_PC};
    if ((uintptr_t(dst) | uintptr_t(src)) % 16)
        fail("misaligned: " + thread_name(self) + format(" copies 16 bytes from %p to %p in ", src, dst) + place(site));
    if (!in_arenas(dst))
        fail("out of bounds: " + thread_name(self) + " copies to what is not shared memory, in " + place(site));
    if (kChecked) check::copy_started(copy);
    engine.landing = &copy;
    if (eager())
        copy.land();
    else
        std::memset(dst, 0xff, 16);
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
        if (!eager()) copy.land();
        engine.landing = nullptr;
        if (kChecked) check::copy_landed(copy);
    }
    self.copies.resize(left);
}

// ---- single accesses ----

namespace {
void note_access(const void* p, int bytes, bool write, uintptr_t pc) {
    if (uintptr_t(p) % unsigned(bytes))
        fail("misaligned: " + thread_name(*engine.current) + format(" accesses %d bytes at %p, at %%0", bytes, p), pc);
    if (kChecked) check::access(p, size_t(bytes), write ? check::kWrite : check::kRead, pc);
    engine.accessing = pc;
}

}  // namespace

void read_vector(void* to, const void* from, int bytes) {
    note_access(from, bytes, /*write=*/false, uintptr_t(__builtin_return_address(0)));
    std::memcpy(to, from, size_t(bytes));
    engine.accessing = 0;
}

void write_vector(void* to, const void* from, int bytes) {
    note_access(to, bytes, /*write=*/true, uintptr_t(__builtin_return_address(0)));
    std::memcpy(to, from, size_t(bytes));
    engine.accessing = 0;
}

uint32_t atomic_u32(uint32_t* p, uint32_t value, Atomic op) {
    const auto pc = uintptr_t(__builtin_return_address(0));
    look_at_watch(nullptr, pc);
    if (uintptr_t(p) % 4)
        fail("misaligned: " + thread_name(*engine.current) +
                 format(" has an atomic at %p, at %%0", static_cast<void*>(p)),
             pc);
    if (engine.n_slots > 1 && !in_arenas(p)) {  // whoever waits for another block asks by atomics: let it come
        Lane& self = *engine.current;
        make_ready(*self.warp, *self.block, 1u << (self.id & 31));
        suspend(/*next_slot=*/true);
    }
    if (kChecked) check::access(p, 4, check::kAtomic, pc);
    engine.accessing = pc;
    const uint32_t old = *p;
    *p = op == Atomic::kAdd ? old + value : op == Atomic::kMax ? std::max(old, value) : old | value;
    engine.accessing = 0;
    return old;
}

}  // namespace emu
