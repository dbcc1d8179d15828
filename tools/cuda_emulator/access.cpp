// Memory as kernels reach it: shared arrays, copies in flight, vector accesses, atomics and tickets.
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

// ---- cp.async ----

static bool eager() {
    return engine.config.eager_copies || is_sm_75();
}

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
    if (eager()) {
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
        if (!eager()) {
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
void note_access(const void* p, int bytes, bool write, uintptr_t pc) {
    if (uintptr_t(p) % unsigned(bytes))
        fail("misaligned: " + thread_name(*engine.current) + format(" accesses %d bytes at %p, at %%0", bytes, p), pc);
#ifdef EMU_CHECKED
    check::access(p, size_t(bytes), write ? check::kWrite : check::kRead, pc);
#else
    (void)write;
#endif
    engine.accessing = pc;
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
/// *p = change(*p); what it was.
template <class T, class Change>
T atomic(T* p, uintptr_t pc, Change change) {
    look_at_watch(nullptr, pc);
    if (uintptr_t(p) % sizeof(T))
        fail("misaligned: " + thread_name(*engine.current) +
                 format(" has an atomic at %p, at %%0", static_cast<void*>(p)),
             pc);
    if (engine.n_slots > 1 && !in_arenas(p)) {  // whoever waits for another block asks by atomics: let it come
        Lane& self = *engine.current;
        make_ready(*self.warp, *self.block, 1u << (self.id & 31));
        suspend(/*next_slot=*/true);
    }
#ifdef EMU_CHECKED
    check::access(p, sizeof(T), check::kAtomic, pc);
#endif
    engine.accessing = pc;
    const T old = *p;
    *p = change(old);
    engine.accessing = 0;
    return old;
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

uint32_t atomic_u32(uint32_t* p, uint32_t value, Atomic op, uint32_t compare) {
    return atomic(p, uintptr_t(__builtin_return_address(0)),
                  [=](uint32_t old) { return apply(old, value, op, compare); });
}
uint64_t atomic_u64(uint64_t* p, uint64_t value, Atomic op, uint64_t compare) {
    return atomic(p, uintptr_t(__builtin_return_address(0)),
                  [=](uint64_t old) { return apply(old, value, op, compare); });
}
int32_t atomic_s32(int32_t* p, int32_t value, Atomic op) {
    return atomic(p, uintptr_t(__builtin_return_address(0)), [=](int32_t old) {
        return op == Atomic::kAdd ? int32_t(uint32_t(old) + uint32_t(value)) : apply(old, value, op, old);
    });
}
float atomic_f32(float* p, float value) {
    return atomic(p, uintptr_t(__builtin_return_address(0)), [=](float old) { return old + value; });
}
double atomic_f64(double* p, double value) {
    return atomic(p, uintptr_t(__builtin_return_address(0)), [=](double old) { return old + value; });
}

unsigned take_ticket(unsigned* counter, const char* file, int line) {
    Block& block = *engine.current->block;
    barrier(0, Vote::kCount, file, line);
    if (engine.current->id == 0) {
        block.ticket = atomic(counter, uintptr_t(__builtin_return_address(0)), [](unsigned old) { return old + 1; });
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
