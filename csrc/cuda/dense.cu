// Launchers of the dense kernels, and what the module asks of the device itself.
#include <algorithm>

#include "dense.cuh"
#include "launch.h"

namespace wals::cuda {
namespace {

int64_t gram_blocks(int64_t D) {
    const int64_t side = (D + kDenseTile - 1) / kDenseTile;
    return side * (side + 1) / 2;
}
int64_t gram_slabs(int64_t n, int64_t D) {
    return dense_slabs(n, gram_blocks(D));
}

}  // namespace

Devices devices() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        cudaGetLastError();
        return {0, cudaGetErrorString(status)};
    }
    return {count, count ? "" : "no CUDA device"};
}

std::map<std::string, int64_t> device_properties(int device, std::string& name) {
    if (device < 0) check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    cudaDeviceProp is;
    check_cuda(cudaGetDeviceProperties(&is, device), "cudaGetDeviceProperties");
    name = is.name;
    return {{"capability", 10 * is.major + is.minor},
            {"processors", is.multiProcessorCount},
            {"threads", is.maxThreadsPerMultiProcessor},
            {"registers", is.regsPerMultiprocessor},
            {"shared", int64_t(is.sharedMemPerMultiprocessor)},
            {"shared_reserved", int64_t(is.reservedSharedMemPerBlock)},
            {"shared_of_block", int64_t(is.sharedMemPerBlockOptin)},
            {"cache_bytes", is.l2CacheSize},
            {"memory_bytes", int64_t(is.totalGlobalMem)}};
}

bool fits(size_t shared) {
    int device = 0, most = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cudaDeviceGetAttribute");
    return shared <= size_t(most);
}

DeviceGuard::DeviceGuard(int device) {
    int now = 0;
    check_cuda(cudaGetDevice(&now), "cudaGetDevice");
    if (device < 0 || device == now) return;
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    before_ = now;
}
DeviceGuard::~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
}

int64_t own_stream(int device) {
    const DeviceGuard guard(device);
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return int64_t(reinterpret_cast<uintptr_t>(stream));
}

int64_t gram_bytes(int64_t n, int64_t D) {
    return gram_slabs(n, D) * D * D * int64_t(sizeof(double));
}

void gram(const float* y, int64_t n, int64_t D, Broadcast<float> weight, double* out, void* workspace, Stream stream) {
    auto* const partial = static_cast<double*>(workspace);
    const int64_t slabs = gram_slabs(n, D);
    launch(gram_kernel, dim3(unsigned(gram_blocks(D)), unsigned(slabs)), kDenseThreads, 0, stream, y, n, int(D), weight,
           partial);
    const int64_t side = (D + kSumTile - 1) / kSumTile;
    launch(gram_sum_kernel, unsigned(side * (side + 1) / 2), kDenseThreads, 0, stream,
           static_cast<const double*>(partial), int(slabs), int(D), out);
}

void rotate(const float* y, int64_t n, int64_t D, int64_t in_stride, const double* q, const int32_t* status, float* out,
            int64_t out_stride, Stream stream) {
    const RotateShape shape{n, int(D), int(in_stride), int(out_stride)};
    const dim3 grid(unsigned((n + kDenseTile - 1) / kDenseTile), unsigned((out_stride + kDenseTile - 1) / kDenseTile));
    if (q)
        launch(rotate_wide_kernel, grid, kDenseThreads, 0, stream, shape, y, q, status, out);
    else
        launch(pad_kernel, unsigned((n * out_stride + kDenseThreads - 1) / kDenseThreads), kDenseThreads, 0, stream,
               shape, y, status, out);
}

int64_t split_basis_bytes(int64_t D) {
    return padded(D) * padded(D) * int64_t(sizeof(float));
}

void split_basis(const double* q, int64_t D, bool transposed, void* tiles, Stream stream) {
    const int64_t side = padded(D) / 16, warps = kDenseThreads / 32;
    launch(split_basis_kernel, unsigned((side * side + warps - 1) / warps), kDenseThreads, 0, stream, q, int(D),
           transposed, static_cast<uint4*>(tiles));
}

void rotate_split(const float* y, int64_t n, int64_t D, int64_t in_stride, const void* tiles, const int32_t* status,
                  float* out, int64_t out_stride, Stream stream) {
    const RotateShape shape{n, int(D), int(in_stride), int(out_stride)};
    const int64_t rows = 32 * kSplitWarps, columns = 16 * kSplitColumns;
    const dim3 grid(unsigned((n + rows - 1) / rows), unsigned((padded(D) + columns - 1) / columns));
    launch(rotate_split_kernel, grid, 32 * kSplitWarps, 0, stream, shape, y, static_cast<const uint4*>(tiles), status,
           out);
}

void column_max(const float* table, int64_t n, int64_t D, float* out, Stream stream) {
    const int64_t P = padded(D), blocks = (P + kDenseThreads - 1) / kDenseThreads;
    const int64_t slabs = std::clamp<int64_t>(n / 64, 1, limits::blocks_of_device);
    launch(column_max_kernel, dim3(unsigned(blocks), unsigned(slabs)), kDenseThreads, 0, stream, table, n, int(P),
           reinterpret_cast<unsigned*>(out));
}

void clear(void* words, int64_t n, Stream stream) {
    const int64_t blocks = std::min((n + kDenseThreads - 1) / kDenseThreads, 4 * limits::blocks_of_device);
    launch(clear_kernel, unsigned(blocks), kDenseThreads, 0, stream, static_cast<int32_t*>(words), n);
}

void relax(const RotatedRows& p, int64_t most, const int32_t* list, const int32_t* count, const float* from,
           Stream stream) {
    const int64_t blocks = list ? limits::blocks_of_device : p.terms.n_rows;
    launch(relax_kernel, unsigned(blocks), 32, 0, stream, p, most, list, count, from);
}

void row_loss(const RotatedRows& p, bool wide, double* loss, Stream stream) {
    launch(wide ? row_loss_kernel<double> : row_loss_kernel<float>, unsigned(p.terms.n_rows), 32 * kLossWarps, 0,
           stream, p, loss);
}

void ridge_loss(const float* x, const float* prior, int64_t n, int64_t D, Broadcast<float> ridge, double* loss,
                Stream stream) {
    launch(ridge_loss_kernel, unsigned(n), 32, 0, stream, x, prior, int(D), ridge, loss);
}

void sum(const double* values, const double* weights, int64_t n, double* out, Stream stream) {
    launch(sum_kernel, 1, kDenseThreads, 0, stream, values, weights, n, out);
}

}  // namespace wals::cuda
