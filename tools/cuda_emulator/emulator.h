// The twin of csrc/cuda/device.h for compilers that are not nvcc: CUDA's built-ins and the project's wrappers, as thin
// templates over the engine (engine.cpp), which is never instrumented. docs/emulator.md tells what it checks.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "types.h"

#define EMU_API __attribute__((visibility("hidden")))
#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()  // of the caller

namespace emu {

/// What a launch found wrong; one line per finding: "kind: what, thread and block, file:line".
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Builtins {
    uint3 thread, block, block_size, grid_size;
    int lane;
};
extern __thread EMU_API Builtins builtins __attribute__((tls_model("initial-exec")));

struct Shape {
    dim3 grid, block;
    size_t smem;
    const void* kernel;
};
/// A kernel with its arguments, which outlive the call that starts it.
struct Task {
    void (*run)(void* arguments);
    void (*destroy)(void* arguments);
    void* arguments;
    size_t bytes;  // of the arguments
};
EMU_API cudaError_t start(const Shape& shape, const Task& task, cudaStream_t stream);  // runtime.cpp

/// A launch as the CUDA driver would get it: each parameter's bytes, as this compiler lays them out, at its alignment.
struct Launched {
    Shape shape;
    std::vector<std::tuple<size_t, size_t, size_t>> parameters;  // offset, bytes, alignment
    std::string bytes;

    template <class... Params>
    Launched(const Shape& shape, const std::tuple<Params...>& values) : shape(shape) {
        std::apply([&](const auto&... each) { (add(&each, sizeof each, alignof(decltype(each))), ...); }, values);
    }

   private:
    void add(const void* p, size_t n, size_t alignment) {
        bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, 0);
        parameters.push_back({bytes.size(), n, alignment});
        bytes.append(static_cast<const char*>(p), n);
    }
};
/// Somebody else who runs kernels: gets each launch as a driver does. Empty: the emulator runs them.
extern EMU_API std::function<void(const Launched&)> elsewhere;

EMU_API unsigned char* dynamic_smem();
EMU_API size_t note_carved(unsigned char* array, size_t bytes, size_t total, size_t rounded);
EMU_API void* static_smem(const void* tag, size_t bytes, size_t alignment);

EMU_API int barrier(int predicate, const char* file, int line);  // of how many threads it is not 0
EMU_API void sync_warp(unsigned mask, const char* file, int line);
EMU_API uint64_t shuffle(unsigned mask, uint64_t bits, int source, const char* what, const char* file, int line);
EMU_API unsigned ballot(unsigned mask, int predicate, const char* file, int line);

EMU_API void copy_async(void* dst, const void* src, bool real, const char* file, int line);
EMU_API void commit_copies();
EMU_API void wait_copies(int groups_left);

EMU_API bool is_sm_75();  // no copies that land later, no products deeper than 8
EMU_API void mma(float* d, const uint32_t* a, const uint32_t* b, const float* c, const char* file, int line);
EMU_API void load_matrix(uint32_t* r, bool transposed, const void* row, const char* file, int line);

// An access that says its own size, or is atomic. Checks alignment; the checked build records it under its caller's
// line.
EMU_API void read_vector(void* to, const void* from, int bytes);
EMU_API void write_vector(void* to, const void* from, int bytes);
enum class Atomic { kAdd, kMax, kOr };
EMU_API uint32_t atomic_u32(uint32_t* p, uint32_t value, Atomic op);

template <class T>
uint64_t to_bits(T x) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &x, sizeof x);
    return bits;
}
template <class T>
T from_bits(uint64_t bits) {
    T x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

template <class Tag>  // one per declaration and template instance
struct StaticTag {
    static inline char here = 0;
};
template <class T, class Tag>
T& static_array(Tag) {
    return *static_cast<T*>(static_smem(&StaticTag<Tag>::here, sizeof(T), alignof(T)));
}

}  // namespace emu

#define threadIdx (::emu::builtins.thread)
#define blockIdx (::emu::builtins.block)
#define blockDim (::emu::builtins.block_size)
#define gridDim (::emu::builtins.grid_size)

// ---- barriers and warp collectives ----
inline void __syncthreads(EMU_SITE) {
    emu::barrier(0, file, line);
}
inline int __syncthreads_count(int predicate, EMU_SITE) {
    return emu::barrier(predicate, file, line);
}
inline int __syncthreads_or(int predicate, EMU_SITE) {
    return emu::barrier(predicate, file, line) != 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) {
    emu::sync_warp(mask, file, line);
}
template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, EMU_SITE) {
    const int own = emu::builtins.lane, first = own & ~(width - 1);
    return emu::from_bits<T>(
        emu::shuffle(mask, emu::to_bits(x), first + (source & (width - 1)), "__shfl_sync", file, line));
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, EMU_SITE) {
    const int own = emu::builtins.lane, source = own - int(delta);
    const int valid = source >= (own & ~(width - 1)) ? source : own;
    return emu::from_bits<T>(emu::shuffle(mask, emu::to_bits(x), valid, "__shfl_up_sync", file, line));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32, EMU_SITE) {
    const int own = emu::builtins.lane, source = own ^ lanes;
    const int valid = source <= (own | (width - 1)) ? source : own;
    return emu::from_bits<T>(emu::shuffle(mask, emu::to_bits(x), valid, "__shfl_xor_sync", file, line));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
    return emu::ballot(mask, predicate, file, line);
}

// ---- memory ----
// Always inlined: the engine takes its own return address for the access's line.
template <class T>
__forceinline__ T atomicAdd(T* p, T x) {
    return T(emu::atomic_u32(reinterpret_cast<uint32_t*>(p), uint32_t(x), emu::Atomic::kAdd));
}
__forceinline__ unsigned atomicMax(unsigned* p, unsigned x) {
    return emu::atomic_u32(p, x, emu::Atomic::kMax);
}
__forceinline__ unsigned atomicOr(unsigned* p, unsigned x) {
    return emu::atomic_u32(p, x, emu::Atomic::kOr);
}

// ---- launches ----
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args... args) {
    using Call = std::pair<void (*)(Params...), std::tuple<Params...>>;
    const emu::Shape shape{config->grid, config->block, config->dynamicSmemBytes,
                           reinterpret_cast<const void*>(kernel)};
    auto* const call = new Call(kernel, std::tuple<Params...>(static_cast<Params>(args)...));
    const auto run = [](void* c) { std::apply(static_cast<Call*>(c)->first, static_cast<Call*>(c)->second); };
    const auto destroy = [](void* c) { delete static_cast<Call*>(c); };
    if (!emu::elsewhere) return emu::start(shape, {run, destroy, call, sizeof(Call)}, config->stream);
    const std::unique_ptr<Call> owner(call);
    emu::elsewhere(emu::Launched(shape, call->second));
    return cudaSuccess;
}

// ---- the project's wrappers; device.h tells what they do ----
#define STATIC_SMEM(name, ...) auto& name = ::emu::static_array<__VA_ARGS__>([] {})

namespace wals::cuda {

using emu::dynamic_smem;
using emu::note_carved;

template <class V>
__forceinline__ V ld(const void* p) {
    static_assert(sizeof(V) == 8 || sizeof(V) == 16, "ld<V> is for vectors of 8 or 16 bytes");
    V v;
    emu::read_vector(&v, p, sizeof v);
    return v;
}
template <class V>
__forceinline__ void st(void* p, V v) {
    static_assert(sizeof(V) == 8 || sizeof(V) == 16, "st<V> is for vectors of 8 or 16 bytes");
    emu::write_vector(p, &v, sizeof v);
}

inline int opaque(int x) {
    return x;
}

inline void cp_async(void* dst, const void* src, bool real = true, EMU_SITE) {
    emu::copy_async(dst, src, real, file, line);
}
inline void cp_async_commit() {
    emu::commit_copies();
}
template <int Left>
void cp_async_wait() {
    emu::wait_copies(Left);
}

inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], EMU_SITE) {
    if (!emu::is_sm_75()) return emu::mma(d, a, b, c, file, line);
    const uint32_t left[2][4] = {{a[0], a[1], 0, 0}, {0, 0, a[2], a[3]}}, right[2][2] = {{b[0], 0}, {0, b[1]}};
    emu::mma(d, left[0], right[0], c, file, line);
    emu::mma(d, left[1], right[1], d, file, line);
}
__forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row, EMU_SITE) {
    emu::load_matrix(r, false, row, file, line);
}
__forceinline__ void ldmatrix_trans(uint32_t (&r)[4], const void* row, EMU_SITE) {
    emu::load_matrix(r, true, row, file, line);
}

inline uint32_t pack_f16(float lo, float hi) {
    return emu_float_to_half(lo) | uint32_t(emu_float_to_half(hi)) << 16;
}
inline float2 unpack_f16(uint32_t h) {
    return {emu_half_to_float(uint16_t(h)), emu_half_to_float(uint16_t(h >> 16))};
}

}  // namespace wals::cuda
