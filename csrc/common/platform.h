// What only one system has: everything that csrc asks Linux for. Elsewhere each of these does nothing and says so.
#pragma once

#include <cstddef>

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace wals {

/// Asks for huge pages behind an aligned block of memory; whether there are any is up to the system.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

/// Whether this process may use the tile registers of AMX: Linux gives their 8 KiB of state to processes that ask, once
/// for all their threads.
inline bool may_use_amx_tiles() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace wals
