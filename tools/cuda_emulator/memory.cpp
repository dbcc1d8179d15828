// Device memory of the emulator, and the source lines of addresses.
//
// Each allocation is a mapping of its own that ends at a page which faults, full of 0xff (NaN). In the plain build the
// array ends right there, to 16 bytes, so that running over its end is found; the checked build knows its size to the
// byte and can keep cudaMalloc's alignment of 256.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "engine.h"

namespace emu {

namespace {
std::vector<Allocation> allocations;  // by address, not overlapping
std::mutex allocations_lock;
std::vector<Allocation> freed;    // the latest, whose addresses are not used again
std::map<int, size_t> on_device;  // bytes

}  // namespace

void* map_memory(size_t bytes, const std::string& name, int device, CUstream_st* stream) {
    // The plain build finds overruns by the page behind; the checked build by the size, and keeps cudaMalloc's
    // alignment.
    const size_t alignment = kChecked ? 256 : 16, rounded = (bytes + alignment - 1) / alignment * alignment;
    const size_t pages = (rounded + kPage - 1) / kPage * kPage, mapped = pages + kPage;
    // Far from everything else, where the system allows, so that wild addresses are no other memory of the process.
    static std::atomic<uintptr_t> next{uintptr_t(1) << 44};
    void* const wish = reinterpret_cast<void*>(next.fetch_add((mapped + (1 << 20)) / kPage * kPage));
    void* const mapping = mmap(wish, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mprotect(static_cast<char*>(mapping) + pages, kPage, PROT_NONE);
    char* const p = static_cast<char*>(mapping) + pages - rounded;
    std::memset(p, 0xff, rounded);
    std::lock_guard<std::mutex> lock(allocations_lock);
    const auto after = std::upper_bound(allocations.begin(), allocations.end(), uintptr_t(p),
                                        [](uintptr_t q, const Allocation& b) { return q < b.begin; });
    allocations.insert(after, {uintptr_t(p), uintptr_t(p) + bytes, name, mapping, mapped, device, stream});
    on_device[device] += bytes;
    return p;
}

void unmap_memory(uintptr_t begin) {
    std::lock_guard<std::mutex> lock(allocations_lock);
    const auto a =
        std::find_if(allocations.begin(), allocations.end(), [&](const Allocation& b) { return b.begin == begin; });
#ifdef EMU_CHECKED
    check::drop_shadow(*a);
#endif
    munmap(a->mapping, a->mapped);
    on_device[a->device] -= a->end - a->begin;
    if (freed.size() == 64) freed.erase(freed.begin());
    freed.push_back(*a);
    allocations.erase(a);
}

size_t device_bytes(int device) {
    return on_device[device];
}

void reach_device(int device) {
    static bool all = true;
    const auto others = [&](const auto& d) { return d.first != device && d.second; };
    if (device < 0 ? all : std::none_of(on_device.begin(), on_device.end(), others)) return;
    for (const Allocation& a : allocations)
        mprotect(a.mapping, a.mapped - kPage, device < 0 || a.device == device ? PROT_READ | PROT_WRITE : PROT_NONE);
    all = device < 0;
}

std::vector<Array> arrays() {
    std::lock_guard<std::mutex> lock(allocations_lock);
    std::vector<Array> result;
    for (const Allocation& a : allocations)
        result.push_back({reinterpret_cast<void*>(a.begin), reinterpret_cast<void*>(a.end), a.name});
    return result;
}

/// The allocation that holds `p`, or that has it within a page of its ends.
Allocation* find_allocation(uintptr_t p) {
    const auto after = std::upper_bound(allocations.begin(), allocations.end(), p,
                                        [](uintptr_t q, const Allocation& b) { return q < b.begin; });
    if (after != allocations.begin() && p < std::prev(after)->end + kPage) return &*std::prev(after);
    return after != allocations.end() && p + kPage >= after->begin ? &*after : nullptr;
}

std::string name_address(uintptr_t p) {
    for (const Allocation& a : freed)
        if (p >= a.begin && p < a.end)
            return format("byte %td of buffer '%s', which has been freed", ptrdiff_t(p - a.begin), a.name.c_str());
    return format("address %p", reinterpret_cast<void*>(p));
}

/// "file:line" of an address in the kernels' source, by addr2line: the innermost frame that is no wrapper and, with
/// `callers`, the frames it is inlined into.
std::string source_line(uintptr_t pc, bool callers) {
    Dl_info image;
    if (!pc || !dladdr(reinterpret_cast<void*>(pc - 1), &image)) return "an unknown line";
    char command[1024];
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", image.dli_fname,
             size_t(pc - 1 - uintptr_t(image.dli_fbase)));
    FILE* const lines = popen(command, "r");
    std::string text;
    char line[1024];
    while (lines && fgets(line, sizeof line, lines)) {
        std::string frame = line;
        frame = frame.substr(0, frame.find_first_of(" \n"));
        const auto in = [&](const char* file) { return frame.find(file) != std::string::npos; };
        if (in("/cuda_emulator/emulator.h") || in("/cuda_emulator/types.h") || in("/cuda/device.h") || in("/c++/"))
            continue;
        if (text.empty())
            text = frame;
        else if (callers)
            text += " (in " + frame + ")";
    }
    if (lines) pclose(lines);
    return text.empty() ? "an unknown line" : text;
}

/// "solve_cg_kernel<...>", without parameters.
std::string kernel_name(const void* kernel) {
    Dl_info image;
    if (!dladdr(kernel, &image)) return "the kernel";
    char command[1024], name[1024] = "";
    snprintf(command, sizeof command, "addr2line -f -C -e '%s' 0x%zx 2>/dev/null", image.dli_fname,
             size_t(uintptr_t(kernel) - uintptr_t(image.dli_fbase)));
    FILE* const lines = popen(command, "r");
    if (!lines || !fgets(name, sizeof name, lines)) name[0] = 0;
    if (lines) pclose(lines);
    std::string text = name;
    const std::string unnamed = "(anonymous namespace)::";
    for (size_t at; (at = text.find(unnamed)) != std::string::npos;) text.erase(at, unnamed.size());
    text = text.substr(0, text.find_first_of("(\n"));
    return text.empty() || text[0] == '?' ? "the kernel" : text;
}

}  // namespace emu
