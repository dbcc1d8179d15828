#include "dispatch.h"

#include <atomic>
#include <cstdlib>

#include "../common/platform.h"
#include "drivers.h"

#define WALS_DECLARE(name)                  \
    namespace wals::cpu {                   \
    namespace name {                        \
    const KernelTable<float>* table_f32();  \
    const KernelTable<double>* table_f64(); \
    }                                       \
    }
WALS_DECLARE(isa_baseline)
#if defined(WALS_HAS_X86)
WALS_DECLARE(isa_avx2)
WALS_DECLARE(isa_avx512)
WALS_DECLARE(isa_avx512vnni)
#endif
#if defined(WALS_HAS_AMX)
WALS_DECLARE(isa_amx)
#endif

namespace wals::cpu {
namespace {

struct Isa {
    const char* name;
    const KernelTable<float>* (*f32)();
    const KernelTable<double>* (*f64)();
    bool (*runs_here)();
};

#if defined(WALS_HAS_X86)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

bool has_vnni() {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

#if defined(WALS_HAS_AMX)
bool has_amx() {
    return has_vnni() && __builtin_cpu_supports("amx-int8") && may_use_amx_tiles();
}
#endif
#endif

const Isa kIsas[] = {
#if defined(WALS_HAS_X86)
#if defined(WALS_HAS_AMX)
    {"amx", isa_amx::table_f32, isa_amx::table_f64, has_amx},
#endif
    {"avx512vnni", isa_avx512vnni::table_f32, isa_avx512vnni::table_f64, has_vnni},
    {"avx512", isa_avx512::table_f32, isa_avx512::table_f64, has_avx512},
    {"avx2", isa_avx2::table_f32, isa_avx2::table_f64,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"baseline", isa_baseline::table_f32, isa_baseline::table_f64, [] { return true; }},
};

const Isa* find(const char* name) {  // null name: the best
    for (const Isa& isa : kIsas)
        if ((!name || std::string(isa.name) == name) && isa.runs_here()) return &isa;
    return nullptr;
}

std::atomic<const Isa*> g_isa{nullptr};

const Isa& current() {
    const Isa* isa = g_isa.load();
    if (!isa) {
        const char* name = std::getenv("WALS_GPU_ISA");
        isa = find(name && *name ? name : nullptr);
        if (!isa) isa = find("baseline");  // the module refuses a wrong name at import
        g_isa.store(isa);
    }
    return *isa;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : kIsas)
        if (isa.runs_here()) names.emplace_back(isa.name);
    return names;
}

std::string isa() {
    return current().name;
}

bool use_isa(const std::string& name) {
    const Isa* isa = find(name.c_str());
    if (isa) g_isa.store(isa);
    return isa != nullptr;
}

template <>
const KernelTable<float>& kernels<float>() {
    return *current().f32();
}
template <>
const KernelTable<double>& kernels<double>() {
    return *current().f64();
}

}  // namespace wals::cpu
