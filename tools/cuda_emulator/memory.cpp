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
    if (kChecked) check::drop_shadow(*a);
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
    for (const Allocation& a : allocations) result.push_back({a.begin, a.end, a.name});
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

namespace {
/// What addr2line says of an address.
std::vector<std::string> look_up(const char* options, uintptr_t address) {
    std::vector<std::string> lines;
    Dl_info image;
    if (!address || !dladdr(reinterpret_cast<void*>(address), &image)) return lines;
    char command[1024], line[1024];
    snprintf(command, sizeof command, "addr2line %s -e '%s' 0x%zx 2>/dev/null", options, image.dli_fname,
             size_t(address - uintptr_t(image.dli_fbase)));
    FILE* const output = popen(command, "r");
    while (output && fgets(line, sizeof line, output)) lines.push_back(line);
    if (output) pclose(output);
    return lines;
}
}  // namespace

/// "file:line" of an address in the kernels' source: the innermost frame that is no wrapper and, with `callers`, the
/// frames it is inlined into.
std::string source_line(uintptr_t pc, bool callers) {
    std::string text;
    for (const std::string& line : look_up("-i", pc ? pc - 1 : 0)) {
        const std::string frame = line.substr(0, line.find_first_of(" \n"));
        const auto in = [&](const char* file) { return frame.find(file) != std::string::npos; };
        if (in("/cuda_emulator/emulator.h") || in("/cuda_emulator/types.h") || in("/cuda/device.h") || in("/c++/"))
            continue;
        if (text.empty())
            text = frame;
        else if (callers)
            text += " (in " + frame + ")";
    }
    return text.empty() ? "an unknown line" : text;
}

/// "solve_cg_kernel<...>", without parameters.
std::string kernel_name(const void* kernel) {
    const std::vector<std::string> lines = look_up("-f -C", uintptr_t(kernel));
    std::string text = lines.empty() ? "" : lines[0];
    const std::string unnamed = "(anonymous namespace)::";
    for (size_t at; (at = text.find(unnamed)) != std::string::npos;) text.erase(at, unnamed.size());
    text = text.substr(0, text.find_first_of("(\n"));
    return text.empty() || text[0] == '?' ? "the kernel" : text;
}

}  // namespace emu
