// Launchers of the kernels of linear priors.
#include <algorithm>

#include "features.cuh"
#include "launch.h"

namespace wals::cuda {
namespace {

int64_t tiles(int64_t n) {
    return (n + kDenseTile - 1) / kDenseTile;
}
int64_t cross_slabs(int64_t n, int64_t E, int64_t D) {
    return dense_slabs(n, tiles(E + 1) * tiles(D));
}

}  // namespace

void map_features(const float* features, int64_t n, int64_t E, const float* weights, int64_t D, Broadcast<float> scale,
                  const int32_t* status, bool add, float* out, Stream stream) {
    launch(map_kernel, dim3(unsigned(tiles(n)), unsigned(tiles(D))), kDenseThreads, 0, stream, features, n, int(E),
           weights, int(D), scale, status, add, out);
}

int64_t cross_bytes(int64_t n, int64_t E, int64_t D) {
    return cross_slabs(n, E, D) * (E + 1) * D * int64_t(sizeof(double));
}

void cross(const float* features, int64_t n, int64_t E, Broadcast<float> weight, const float* x, const float* m,
           int64_t D, double* out, void* workspace, Stream stream) {
    auto* const partial = static_cast<double*>(workspace);
    const int64_t slabs = cross_slabs(n, E, D), size = (E + 1) * D;
    launch(cross_kernel, dim3(unsigned(tiles(E + 1) * tiles(D)), unsigned(slabs)), kDenseThreads, 0, stream, features,
           n, int(E), weight, x, m, int(D), partial);
    launch(cross_sum_kernel, unsigned((size + kDenseThreads - 1) / kDenseThreads), kDenseThreads, 0, stream,
           static_cast<const double*>(partial), int(slabs), size, out);
}

void line(const RotatedRows& p, const float* v, double* slope, double* curvature, Stream stream) {
    launch(line_kernel, unsigned(p.terms.n_rows), 32 * kLossWarps, 0, stream, p, v, slope, curvature);
}

void scale(float* values, int64_t n, float factor, Stream stream) {
    const int64_t blocks = std::min((n + kDenseThreads - 1) / kDenseThreads, 4 * limits::blocks_of_device);
    launch(scale_kernel, unsigned(blocks), kDenseThreads, 0, stream, values, n, factor);
}

}  // namespace wals::cuda
