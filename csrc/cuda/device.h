// What kernels are written with. nvcc compiles it to CUDA; any other C++17 compiler to the emulator
// (tools/cuda_emulator), which runs the same source on the CPU and checks it. Kernel sources (csrc/cuda/*.cu, *.cuh)
// include this header and plain C++ headers, and nothing of CUDA's own. Their rules:
//
//  1. Dynamic shared memory comes from dynamic_smem() and is cut up by one Carver. Write the cutting once, as a
//     struct whose constructor takes a Carver&: `Layout(carve, n)` in the kernel and
//     `Carver::bytes_of<Layout>(n)` in the launcher then agree. The checked emulator knows each sub-array's extent.
//  2. Static shared memory is declared by STATIC_SMEM(name, float[8][33]), never by __shared__; 16-byte aligned.
//  3. Kernels are started by launch(kernel, grid, block, smem, stream, args...), never by <<<>>>. It throws.
//  4. Inline PTX lives here alone; each wrapper has a twin of the same name in its emulator.h.
//     Compute capability 7.5 has neither cp.async nor f16 products of depth 16: wrappers do without.
//  5. Raw warp intrinsics (__shfl_sync, __ballot_sync, ...), no cooperative groups; those that no kernel uses are not
//  in
//     the emulator. Vector loads are ld4, st4, ld<V>,
//     st<V> (16 or 8 bytes, aligned): a cast to float4* would be seen as four accesses.
//
// What else differs from a chip, so write for it: votes, shuffles and mma order no memory (__syncwarp does); a lane
// named in a mask must come; all threads of a block reach __syncthreads at one line, and none has left; an atomic's
// value orders nothing between blocks; copies by cp_async land at the wait that covers them, not sooner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef __CUDACC__

#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace wals::cuda {

template <class T>
using Declared = T;
#define STATIC_SMEM(name, ...) __shared__ __align__(16)::wals::cuda::Declared<__VA_ARGS__> name

__device__ __forceinline__ unsigned char* dynamic_smem() {
    extern __shared__ __align__(128) unsigned char wals_dynamic_smem[];
    return wals_dynamic_smem;
}

/// One 16 or 8 byte access; `p` is aligned to it.
template <class V>
__device__ __forceinline__ V ld(const void* p) {
    return *reinterpret_cast<const V*>(p);
}
template <class V>
__device__ __forceinline__ void st(void* p, V v) {
    *reinterpret_cast<V*>(p) = v;
}

/// x itself, of which the compiler knows nothing: what depends on it is computed here, in each round of a loop, and not
/// kept in registers from before.
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define WALS_SM_75
#endif

/// Starts a copy of 16 bytes from global to shared memory, both aligned; unless they are `real`, nothing is read, and
/// they become 0. On 7.5 it is done at once.
__device__ __forceinline__ void cp_async(void* dst, const void* src, bool real = true) {
#ifdef WALS_SM_75
    st(dst, real ? ld<uint4>(src) : make_uint4(0, 0, 0, 0));
#else  // past L1: gathered rows are read once per block
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(dst)), "l"(src),
                 "r"(real ? 16 : 0)
                 : "memory");
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#ifndef WALS_SM_75
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
/// Waits for this thread's groups but the latest `Left`; other threads see the data after the next barrier.
template <int Left>
__device__ __forceinline__ void cp_async_wait() {
#ifndef WALS_SM_75
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Left) : "memory");
#endif
}

/// d = a b + c of a warp; registers hold the fragments of PTX's mma.m16n8k16 for f16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                        const float (&c)[4]) {
#ifdef WALS_SM_75  // depths 0 to 7, then 8 to 15: their fragments are the registers of each half
    const auto add = [&](uint32_t near, uint32_t far, uint32_t right, const float (&to)[4]) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};\n"
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                     : "r"(near), "r"(far), "r"(right), "f"(to[0]), "f"(to[1]), "f"(to[2]), "f"(to[3]));
    };
    add(a[0], a[1], b[0], c);
    add(a[2], a[3], b[1], d);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}

/// Four matrices of 8 x 8 16-bit elements; lane 8 m + i gives row i of matrix m (16 bytes, aligned).
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// Two 16-bit elements in one register, `lo` in the low half, rounded to nearest even.
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    const __half2 h = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t*>(&h);
}
__device__ __forceinline__ float2 unpack_f16(uint32_t h) {
    return __half22float2(*reinterpret_cast<const __half2*>(&h));
}

// The emulator learns the extent of sub-arrays here; a chip needs nothing.
__host__ __device__ __forceinline__ size_t note_carved(unsigned char*, size_t, size_t, size_t bytes) {
    return bytes;
}

}  // namespace wals::cuda

#else
#include "cuda_emulator/emulator.h"  // its CMake puts tools/ on the include path
#endif

namespace wals::cuda {

inline void check_cuda(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // so that the next call does not report it once more
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline std::mutex limits_lock;
inline std::map<std::pair<const void*, int>, size_t> shared_memory_limits;  // of kernel and device

/// Lets `kernel` have all the shared memory that a block of the current device can have, once. The limit belongs to
/// kernel and device, not to a launch: whoever set it to what he needs would lower it under the launch of another
/// thread. The kernel's processors keep as much of their memory as they can for blocks.
inline void allow_shared_memory(const void* kernel, size_t bytes) {
    int device = 0, most = 0;
    cudaFuncAttributes own = {};
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    const std::lock_guard<std::mutex> guard(limits_lock);
    size_t& limit = shared_memory_limits[{kernel, device}];
    if (bytes <= limit) return;
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cudaDeviceGetAttribute");
    check_cuda(cudaFuncGetAttributes(&own, kernel), "cudaFuncGetAttributes");
    most -= int(own.sharedSizeBytes);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "cudaFuncSetAttribute");
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "cudaFuncSetAttribute");
    limit = size_t(most);
}

/// Starts `kernel` on `stream` of the current device, if there are blocks; throws std::runtime_error with kernel and
/// shape when it cannot be started.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, Args... args) {
    if (grid.x == 0) return;
    const void* const pointer = reinterpret_cast<const void*>(kernel);
    // Above 48 KiB, static part included, a kernel has to ask; one whose blocks keep their rows there wants the room.
    if (smem > 8 * 1024) allow_shared_memory(pointer, smem);
    const cudaLaunchConfig_t config = {grid, block, smem, stream, nullptr, 0};
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
    if (status == cudaSuccess) return;
    const char* name = nullptr;
    if (cudaFuncGetName(&name, pointer) != cudaSuccess) name = "a kernel";
    const auto shape = [](dim3 d) {
        return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
    };
    check_cuda(status, ("launch of " + std::string(name) + ", grid " + shape(grid) + ", block " + shape(block) + ", " +
                        std::to_string(smem) + " bytes of dynamic shared memory")
                           .c_str());
}

__device__ __forceinline__ float4 ld4(const float* p) {
    return ld<float4>(p);
}
__device__ __forceinline__ void st4(float* p, float4 v) {
    st(p, v);
}

/// Cuts shared memory into arrays, each on a 16-byte boundary. Default-constructed, it only measures (on the host).
class Carver {
    unsigned char* base_;
    size_t used_ = 0;   // with what the checked emulator leaves between arrays
    size_t bytes_ = 0;  // without

   public:
    __host__ __device__ explicit Carver(unsigned char* base = nullptr) : base_(base) {}

    template <class T>
    __host__ __device__ T* take(size_t n) {
        const size_t bytes = (n * sizeof(T) + 15) / 16 * 16;
        T* const array = reinterpret_cast<T*>(base_ + used_);  // no integer between: nvcc sees that it is shared memory
        bytes_ += bytes;
        used_ += base_ ? note_carved(base_ + used_, n * sizeof(T), bytes_, bytes) : bytes;
        return array;
    }

    __host__ __device__ size_t bytes() const { return bytes_; }

    /// What `Layout(Carver&, args...)` takes.
    template <class Layout, class... Args>
    static size_t bytes_of(Args... args) {
        Carver carve;
        Layout layout(carve, args...);
        return carve.bytes();
    }
};

}  // namespace wals::cuda
