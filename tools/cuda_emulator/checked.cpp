// The checked build: races, bounds, uninitialised reads, copies in flight; and the profile.
//
// Accesses. Kernels are compiled with -fsanitize=thread, whose calls before every load and store (__tsan_read4 and its
// like, at the end of this file) arrive here instead of at libtsan, which is not linked: it could not know what orders
// CUDA threads. Vector accesses, atomics, cp_async and ldmatrix are made by the engine, which is not instrumented and
// calls access() itself with their size and the kernel's line. The stacks of lanes, `builtins`, the constants of the
// module and the arguments on the launcher's stack are left out.
//
// Bounds. An access to shared memory has to lie in one array that a Carver or STATIC_SMEM gave out (`extents`; the gaps
// between them are 128 bytes wide), one to global memory in one allocation: to the byte, not to a page. That there is
// other memory at the address does not help.
//
// Shadow. Each 4 bytes of shared and global memory have a `Cell`: the last writes and reads, each an `Access` (who,
// when, which bytes, from which line), and for shared memory which bytes the present block has written (a read of
// others is an uninitialised read) and which a cp_async is on its way to (touching them before its wait is an error of
// its own). Shadows are zero pages until used. A cell of shared memory is forgotten when the next block of the slot
// first touches it.
//
// Races. Two accesses to the same bytes, one of them a write, not both atomic, that nothing orders are a race,
// whichever came first in this run: what is compared is not when accesses happened but what makes them ordered. Ordered
// before an access are: what its block did before the last barrier (`epoch`, which counts barriers); what its own
// thread did; what lanes of its warp did before a __syncwarp with it (`clock`: vector clocks, of a warp only, as
// between warps there are but barriers); and earlier launches. Shuffles, votes and mma order nothing, and neither do
// atomics.
//
// Limits. A cell keeps two writes, the second where the first does not cover the cell, and two reads, of different
// warps if there were such. A race with an access that was pushed out of it goes unseen in this run, and may show in
// another order; what is reported is a race. Global memory is not watched for uninitialised reads: it is full of
// NaN. Accesses that the compiler removed or merged are not seen (CMake turns off what merges them).
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <tuple>
#include <unordered_map>

#include "engine.h"

extern "C" EMU_API char __ehdr_start, _end;  // of this module, by the linker

namespace emu::check {

namespace {

struct Access {
    uint32_t serial = 0;  // of the block; 0: none
    uint32_t epoch = 0, clock = 0;
    int32_t pc = 0;  // relative to the engine
    uint16_t thread = 0;
    uint8_t bytes = 0;  // of the cell, as a mask
    uint8_t kind = 0;
};

struct Cell {
    Access write[2];      // the second where the first does not cover the cell
    Access read[2];       // of different threads; of different warps, if there were such
    uint32_t serial = 0;  // of the block that the cell is about; shared memory only
    uint8_t written = 0, in_flight = 0;
};

constexpr size_t kArenaCells = kArena / 4;
Cell* arena_cells[kMaxResident];
std::vector<std::pair<size_t, size_t>> extents[kMaxResident];  // of the arrays in an arena: offset, bytes
std::vector<uint64_t> started;                                 // linear index of the block with serial first_serial + i
Allocation* latest = nullptr;

struct Launch {
    uint32_t first_serial;
    unsigned stream;
    uint64_t number;
};
std::vector<Launch> launches;  // all that were run
Clock run_so_far;              // of each stream, its latest launch
bool after_all = true;         // this launch comes after all that were run before it

bool comes_after(const Clock& clock, unsigned stream, uint64_t number) {
    return stream < clock.size() && number <= clock[stream];
}
bool comes_after_all(const Clock& clock) {
    for (unsigned s = 0; s < run_so_far.size(); ++s)
        if (!comes_after(clock, s, run_so_far[s]) && run_so_far[s]) return false;
    return true;
}
bool comes_after_launch_of(const Clock& clock, uint32_t serial) {
    const auto next = std::upper_bound(launches.begin(), launches.end(), serial,
                                       [](uint32_t s, const Launch& l) { return s < l.first_serial; });
    return next == launches.begin() || comes_after(clock, std::prev(next)->stream, std::prev(next)->number);
}

int32_t pack_pc(uintptr_t pc) {
    return int32_t(pc - uintptr_t(&engine));
}
uintptr_t unpack_pc(int32_t pc) {
    return uintptr_t(&engine) + uintptr_t(intptr_t(pc));
}

Cell* map_cells(size_t n) {
    void* const p =
        mmap(nullptr, n * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("limit: no memory for the shadow");
    return static_cast<Cell*>(p);
}

const char* verb(unsigned kind) {
    return kind & kAtomic ? "atomic" : kind & kCopy ? "copy" : kind & kWrite ? "write" : "read";
}

std::string thread_of(const Access& a) {
    if (a.serial < engine.first_serial) return "a kernel on another stream";
    const uint64_t linear = started[a.serial - engine.first_serial];
    const dim3 &size = engine.shape.block, &grid = engine.shape.grid;
    return format("thread (%u, %u, %u) of block (%u, %u, %u)", a.thread % size.x, a.thread / size.x % size.y,
                  a.thread / (size.x * size.y), unsigned(linear % grid.x), unsigned(linear / grid.x % grid.y),
                  unsigned(linear / (uint64_t(grid.x) * grid.y)));
}

bool happens_before(const Access& a, const Lane& lane) {
    if (a.serial < engine.first_serial) return after_all || comes_after_launch_of(engine.origin->clock, a.serial);
    const Block& block = *lane.block;
    if (a.serial == block.serial) {
        if (a.epoch < block.epoch || a.thread == lane.id) return true;
        return a.thread / 32 == lane.id / 32 && lane.warp->clock[lane.id & 31][a.thread & 31] >= a.clock;
    }
    return false;
}

/// Where an access is, for messages.
struct Place {
    const Allocation* allocation;  // null: shared memory
    size_t offset;

    std::string text() const {
        const std::string at = "byte " + std::to_string(offset) + " of ";
        return allocation ? at + "buffer '" + allocation->name + "'" : at + "shared memory";
    }
};

void compare(const Access& before, const Access& now, const Lane& lane, const Place& place) {
    if (!before.serial || !(before.bytes & now.bytes)) return;
    if (before.kind == kRead && now.kind == kRead) return;
    if (before.kind == kAtomic && now.kind == kAtomic) return;
    if (happens_before(before, lane)) return;
    report("race: " + place.text() + ": " + verb(now.kind) + " by " + thread_name(lane) +
               " at %0, unordered with the " + verb(before.kind) + " by " + thread_of(before) + " at %1",
           unpack_pc(now.pc), unpack_pc(before.pc));
}

void remember_write(Cell& cell, const Access& now) {
    const int slot = now.bytes & 3 ? 0 : 1;
    Access &own = cell.write[slot], &other = cell.write[1 - slot];
    if (now.bytes == 15) {
        other.serial = 0;
        cell.read[0].serial = cell.read[1].serial = 0;  // whoever conflicts with these conflicts with the write, too
    } else if (own.serial && (own.bytes & ~now.bytes) && !other.serial) {
        other = own;
        other.bytes &= uint8_t(~now.bytes);
    }
    own = now;
}

void remember_read(Cell& cell, const Access& now) {
    Access &last = cell.read[0], &older = cell.read[1];
    if (last.serial == now.serial && last.thread != now.thread) {
        const bool elsewhere =
            older.serial == now.serial && older.epoch == now.epoch && older.thread / 32 != now.thread / 32;
        if (!elsewhere || last.thread / 32 != now.thread / 32) older = last;
    } else if (last.serial != now.serial) {
        older = last;
    }
    last = now;
}

void touch(Cell& cell, const Access& now, const Lane& lane, const Place& place) {
    if (!place.allocation) {
        if (cell.serial != now.serial) {  // the arena's last block is gone
            cell = Cell{};
            cell.serial = now.serial;
        }
        if (cell.in_flight & now.bytes)
            report("copy in flight: " + place.text() + ", on its way by cp.async of " +
                       thread_of(cell.write[now.bytes & 3 ? 0 : 1]) + " at %1: " + verb(now.kind) + " by " +
                       thread_name(lane) + " at %0",
                   unpack_pc(now.pc), unpack_pc(cell.write[now.bytes & 3 ? 0 : 1].pc));
        else if ((now.kind == kRead || now.kind == kAtomic) && (cell.written & now.bytes) != now.bytes)
            report("uninitialised read: " + place.text() + " by " + thread_name(lane) + " at %0", unpack_pc(now.pc), 0);
        if (now.kind != kRead) cell.written |= now.bytes;
    }
    compare(cell.write[0], now, lane, place);
    compare(cell.write[1], now, lane, place);
    if (now.kind == kRead) return remember_read(cell, now);
    compare(cell.read[0], now, lane, place);
    compare(cell.read[1], now, lane, place);
    remember_write(cell, now);
}

/// Calls `visit(cell, mask of its bytes, offset)` for the cells of [offset, offset + bytes).
template <class Visit>
void for_cells(Cell* cells, size_t offset, size_t bytes, Visit&& visit) {
    for (size_t c = offset / 4; c <= (offset + bytes - 1) / 4; ++c) {
        const size_t first = std::max(offset, c * 4) - c * 4, last = std::min(offset + bytes, c * 4 + 4) - c * 4;
        visit(cells[c], uint8_t((1u << last) - (1u << first)), std::max(offset, c * 4));
    }
}

/// Of the module itself, constants among it, or of the launch's arguments.
bool is_ignored(uintptr_t p) {
    return (p >= uintptr_t(&__ehdr_start) && p < uintptr_t(&_end)) ||
           p - uintptr_t(engine.origin->arguments) < engine.origin->argument_bytes;
}

Cell* shadow_of(Allocation& a) {
    if (!a.shadow) {
        const size_t cells = (a.end - (a.begin & ~uintptr_t(3)) + 3) / 4;
        a.shadow = map_cells(cells);
        a.shadow_bytes = cells * sizeof(Cell);
    }
    return static_cast<Cell*>(a.shadow);
}

// ---- profile ----

struct Request {
    int lanes = 0;
    size_t address[32];
    uint32_t present = 0;
};

struct Counter {
    Traffic traffic = {};
    std::unordered_map<uint64_t, Request> open;  // by slot, warp and how often its lanes came by
    std::vector<uint32_t> times;                 // by slot and thread
};
std::map<std::tuple<uintptr_t, bool, unsigned, int>, Counter> counters;  // by pc, shared, kind, bytes

/// Distinct values of address / unit over the words of some lanes.
std::vector<size_t> distinct(const Request& r, int first, int last, int bytes, int unit) {
    std::vector<size_t> units;
    for (int l = first; l < last; ++l)
        if (r.present >> l & 1)
            for (size_t u = r.address[l] / size_t(unit); u <= (r.address[l] + size_t(bytes) - 1) / size_t(unit); ++u)
                units.push_back(u);
    std::sort(units.begin(), units.end());
    units.erase(std::unique(units.begin(), units.end()), units.end());
    return units;
}

void close(Counter& counter, const Request& r, bool shared, int bytes) {
    auto& [requests, units, ideal] = counter.traffic;
    ++requests;
    if (!shared) {
        units += (long long)(distinct(r, 0, 32, bytes, 32).size());
        ideal += (long long)(distinct(r, 0, 32, bytes, 1).size() + 31) / 32;
        return;
    }
    // 8 bytes a lane go half a warp at a time, 16 bytes a quarter; the lanes of one go together unless two words meet
    // in a bank.
    const int together = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += together) {
        int words[32] = {}, most = 0;
        for (size_t w : distinct(r, first, first + together, bytes, 4)) most = std::max(most, ++words[w % 32]);
        units += most;
    }
    ideal += (long long)(distinct(r, 0, 32, bytes, 4).size() + 31) / 32;
}

void count(const Lane& lane, size_t address, size_t bytes, unsigned kind, uintptr_t pc, bool shared) {
    Counter& counter = counters[{pc, shared, kind, int(bytes)}];
    if (counter.times.empty()) counter.times.resize(size_t(kMaxResident) * kMaxThreads);
    const uint64_t thread = uint64_t(lane.block->slot) * kMaxThreads + unsigned(lane.id);
    const uint64_t key = thread / 32 << 32 | counter.times[thread]++;
    Request& r = counter.open[key];
    r.address[lane.id & 31] = address;
    r.present |= 1u << (lane.id & 31);
    if (++r.lanes < 32) return;
    close(counter, r, shared, int(bytes));
    counter.open.erase(key);
}

/// Requests that not all lanes of their warp took part in.
void close_open(int slot) {
    for (auto& [key, counter] : counters) {
        for (auto request = counter.open.begin(); request != counter.open.end();) {
            if (int(request->first >> 32) / kMaxWarps != slot) {
                ++request;
                continue;
            }
            close(counter, request->second, std::get<1>(key), std::get<3>(key));
            request = counter.open.erase(request);
        }
        const auto times = counter.times.begin() + slot * kMaxThreads;
        std::fill(times, times + kMaxThreads, 0);
    }
}

/// One access: which memory, within its array, profile, shadow.
void check_access(const Lane& lane, uintptr_t p, size_t bytes, unsigned kind, uintptr_t pc) {
    Block& block = *lane.block;
    const char* const what = verb(kind);
    const auto outside = [&](const std::string& where) {
        fail("out of bounds: " + std::string(what) + " of " + std::to_string(bytes) + " bytes " + where + " by " +
                 thread_name(lane) + ", at %0",
             pc);
    };
    Access now;
    now.serial = block.serial;
    now.epoch = block.epoch;
    now.clock = lane.warp->clock[lane.id & 31][lane.id & 31];
    now.pc = pack_pc(pc);
    now.thread = uint16_t(lane.id);
    now.kind = uint8_t(kind == kCopy ? unsigned(kRead) : kind);
    Cell* cells;
    size_t offset;
    Place place{nullptr, 0};
    if ((bytes & (bytes - 1)) == 0 && p % bytes)
        fail("misaligned: " + std::string(what) + " of " + std::to_string(bytes) + " bytes by " + thread_name(lane) +
                 " at %0",
             pc);
    if (in_arenas(reinterpret_cast<void*>(p))) {
        offset = p - uintptr_t(block.arena);
        const auto& arrays = extents[block.slot];
        const auto inside = [&](const auto& e) { return e.first <= offset && offset + bytes <= e.first + e.second; };
        if (std::none_of(arrays.begin(), arrays.end(), inside)) {
            const std::pair<size_t, size_t>* nearest = nullptr;  // the array before it
            for (const auto& e : arrays)
                if (e.first <= offset && (!nearest || e.first > nearest->first)) nearest = &e;
            outside(nearest ? format("at byte %zu of an array of %zu bytes in shared memory", offset - nearest->first,
                                     nearest->second)
                            : "in shared memory that no Carver gave out");
        }
        cells = arena_cells[block.slot];
        place.offset = offset - (offset >= kStaticRegion ? kStaticRegion : 0);
    } else {
        if (!latest || p < latest->begin || p + bytes > latest->end) {
            latest = find_allocation(p);
            if (!latest || p < latest->begin || p + bytes > latest->end) {
                if (is_ignored(p)) {
                    latest = nullptr;
                    return;
                }
                const Allocation* const near = std::exchange(latest, nullptr);
                outside(near ? format("at byte %td of buffer '%s' of %zu bytes", ptrdiff_t(p - near->begin),
                                      near->name.c_str(), size_t(near->end - near->begin))
                             : format("at %s, in no known buffer,", name_address(p).c_str()));
            }
        }
        if (!on_this_device(*latest))
            fail(format("wrong device: %s by %s, on device %d, of buffer '%s' of device %d, at %%0", what,
                        thread_name(lane).c_str(), engine.origin->device, latest->name.c_str(), latest->device),
                 pc);
        for (const HostCopy& copy : latest->copies)
            if (p < copy.end && copy.begin < p + bytes && (copy.writes || kind == kWrite || kind == kAtomic) &&
                !comes_after(engine.origin->clock, copy.stream, copy.number))
                report(format("race: buffer '%s': %s by %s at %%0, unordered with a copy on another stream",
                              latest->name.c_str(), what, thread_name(lane).c_str()),
                       pc, 0);
        cells = shadow_of(*latest);
        offset = p - (latest->begin & ~uintptr_t(3));
        place = {latest, p - latest->begin};
    }
    if (engine.config.profile) count(lane, place.allocation ? p : offset, bytes, kind, pc, !place.allocation);
    for_cells(cells, offset, bytes, [&](Cell& cell, uint8_t mask, size_t) {
        now.bytes = mask;
        touch(cell, now, lane, place);
    });
}

}  // namespace

void access(const void* p, size_t bytes, unsigned kind, uintptr_t pc) {
    if (!is_running) return;
    const Lane* const lane = engine.current;
    if (!lane || in_stacks(p) || uintptr_t(p) - uintptr_t(&builtins) < sizeof builtins) return;
    look_at_watch(nullptr, pc);
    check_access(*lane, uintptr_t(p), bytes, kind, pc);
}

void carved(Block& block, size_t offset, size_t bytes) {
    const std::pair<size_t, size_t> extent(offset, bytes);
    auto& arrays = extents[block.slot];
    if (std::find(arrays.begin(), arrays.end(), extent) == arrays.end()) arrays.push_back(extent);
}

void copy_started(const Copy& copy) {
    const Lane& lane = *engine.current;
    if (copy.real) access(copy.src, 16, kCopy, copy.pc);
    access(copy.dst, 16, kWrite, copy.pc);
    Block& block = *lane.block;
    for_cells(arena_cells[block.slot], size_t(copy.dst - block.arena), 16,
              [](Cell& cell, uint8_t mask, size_t) { cell.in_flight |= mask; });
}

void copy_landed(const Copy& copy) {
    Block& block = *engine.current->block;
    for_cells(arena_cells[block.slot], size_t(copy.dst - block.arena), 16,
              [](Cell& cell, uint8_t mask, size_t) { cell.in_flight &= uint8_t(~mask); });
    const bool profile = engine.config.profile;
    engine.config.profile = false;  // counted when it started
    access(copy.dst, 16, kWrite, copy.pc);
    engine.config.profile = profile;
}

void launch_started() {
    started.clear();
    latest = nullptr;
    const Origin& origin = *engine.origin;
    after_all = comes_after_all(origin.clock);
    run_so_far.resize(std::max(run_so_far.size(), origin.clock.size()));
    run_so_far[origin.stream] = origin.clock[origin.stream];
    launches.push_back({engine.first_serial, origin.stream, origin.clock[origin.stream]});
}

void range_touched(Allocation& a, uintptr_t begin, uintptr_t end, bool writes, const Origin& origin, const char* what) {
    const auto unordered = [&](const std::string& with) {
        fail("race: buffer '" + a.name + "': " + what + ", unordered with " + with + " on another stream");
    };
    auto& copies = a.copies;
    for (const HostCopy& copy : copies)
        if (begin < copy.end && copy.begin < end && (writes || copy.writes) &&
            !comes_after(origin.clock, copy.stream, copy.number))
            unordered("a copy");
    const auto covered = [&](const HostCopy& c) {
        return begin <= c.begin && c.end <= end && (writes || (!c.writes && c.stream == origin.stream));
    };
    copies.erase(std::remove_if(copies.begin(), copies.end(), covered), copies.end());
    copies.push_back({begin, end, writes, origin.stream, origin.clock[origin.stream]});
    if (!a.shadow || begin == end || comes_after_all(origin.clock)) return;
    const auto conflicts = [&](const Access& access) {
        return access.serial && !comes_after_launch_of(origin.clock, access.serial);
    };
    const size_t offset = begin - (a.begin & ~uintptr_t(3));
    for_cells(static_cast<Cell*>(a.shadow), offset, end - begin, [&](Cell& cell, uint8_t, size_t) {
        for (int i = 0; i < 2; ++i) {
            if (conflicts(cell.write[i])) unordered("a kernel's write");
            if (writes && conflicts(cell.read[i])) unordered("a kernel's read");
        }
    });
}

void block_started(Block& block) {
    if (!arena_cells[block.slot]) arena_cells[block.slot] = map_cells(kArenaCells);
    extents[block.slot].clear();
    started.push_back(block.linear);
    for (int w = 0; w * 32 < block.n_threads; ++w)
        for (int l = 0; l < 32; ++l) block.warps[w].clock[l][l] = 1;
}

void block_finished(Block& block) {
    if (engine.config.profile) close_open(block.slot);
}

void drop_shadow(Allocation& allocation) {
    if (allocation.shadow) munmap(allocation.shadow, allocation.shadow_bytes);
    latest = nullptr;
}

}  // namespace emu::check

namespace emu {

std::map<Line, Traffic> profile() {
    if (!kChecked) throw Error("profile: only the checked build counts accesses");
    std::map<Line, Traffic> lines;
    for (const auto& [key, counter] : check::counters) {
        const auto& [pc, shared, kind, bytes] = key;
        const std::string where = source_line(pc, /*callers=*/false);
        const size_t colon = where.rfind(':');
        const int line = colon == std::string::npos ? 0 : std::atoi(where.c_str() + colon + 1);
        Traffic& traffic = lines[{where.substr(0, colon), line, shared, check::verb(kind), bytes}];
        for (int i = 0; i < 3; ++i) traffic[i] += counter.traffic[i];
    }
    return lines;
}

void reset_profile() {
    check::counters.clear();
}

}  // namespace emu

// What g++ and clang call in instrumented code.
#define EMU_HOOKS(prefix, n)                                  \
    extern "C" EMU_API void prefix##read##n(void* p) {        \
        emu::check::access(p, n, emu::check::kRead, EMU_PC);  \
    }                                                         \
    extern "C" EMU_API void prefix##write##n(void* p) {       \
        emu::check::access(p, n, emu::check::kWrite, EMU_PC); \
    }
EMU_HOOKS(__tsan_, 1)
EMU_HOOKS(__tsan_, 2)
EMU_HOOKS(__tsan_, 4)
EMU_HOOKS(__tsan_, 8)
EMU_HOOKS(__tsan_, 16)
EMU_HOOKS(__tsan_unaligned_, 2)
EMU_HOOKS(__tsan_unaligned_, 4)
EMU_HOOKS(__tsan_unaligned_, 8)
EMU_HOOKS(__tsan_unaligned_, 16)
extern "C" {
EMU_API void __tsan_read_range(void* p, size_t bytes) {
    emu::check::access(p, bytes, emu::check::kRead, EMU_PC);
}
EMU_API void __tsan_write_range(void* p, size_t bytes) {
    emu::check::access(p, bytes, emu::check::kWrite, EMU_PC);
}
EMU_API void __tsan_init() {}
EMU_API void __tsan_func_entry(void*) {}
EMU_API void __tsan_func_exit() {}
}
