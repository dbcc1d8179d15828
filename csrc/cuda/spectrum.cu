// Launchers of the eigenproblem's kernels.
#include "launch.h"
#include "spectrum.cuh"

namespace wals::cuda {
namespace {

int64_t in_pairs(int64_t D) {
    return (D + kPair - 1) / kPair * kPair;
}

}  // namespace

int64_t spectrum_bytes(int64_t D) {
    const int64_t P = in_pairs(D), numbers = 3 * P * P + P * kPair + P + 1;  // the last array of (P, P): products
    return numbers * int64_t(sizeof(double)) + (P / kPair + kMostSweeps) * int64_t(sizeof(int));
}

void spectrum(const double* gram, int64_t D, const double* start, double* values, double* vectors, void* workspace,
              Stream stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const int P = int(in_pairs(D)), pairs = P / kPair, rounds = 2 * pairs - 1;
    const int64_t area = int64_t{P} * P;
    auto* const numbers = static_cast<double*>(workspace);
    SpectrumWork w = {};
    w.D = int(D), w.P = P;
    w.matrix = numbers, w.basis = w.matrix + area, w.turns = w.basis + area;
    w.row_norm = w.turns + int64_t{P} * kPair, w.rounding = w.row_norm + P;
    double* const product = w.rounding + 1;
    w.turned = reinterpret_cast<int*>(product + area), w.rotations = w.turned + pairs;
    launch(spectrum_start_kernel, unsigned(P), kPairThreads, 0, cuda_stream, w, gram, start);
    launch(spectrum_rounding_kernel, 1, kPairThreads, 0, cuda_stream, w);
    if (start) {
        launch(spectrum_product_kernel<false>, unsigned(pairs * pairs), kTurnThreads, 0, cuda_stream, w.matrix, w.basis,
               P, product);
        launch(spectrum_product_kernel<true>, unsigned(pairs * (pairs + 1) / 2), kTurnThreads, 0, cuda_stream, w.basis,
               product, P, w.matrix);
    }
    const int repeats = pairs == 1 ? kMostSweeps : 1, sweeps = pairs == 1 ? 1 : kMostSweeps;
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (int round = 0; round < rounds; ++round) {
            launch(spectrum_pairs_kernel, unsigned(pairs), kPairThreads, 0, cuda_stream, w, sweep, round, repeats);
            launch(spectrum_turn_kernel, unsigned(pairs * (pairs - 1) / 2 + pairs * pairs), kTurnThreads, 0,
                   cuda_stream, w, sweep, round);
        }
    launch(spectrum_finish_kernel, unsigned((D + 15) / 16), kRankThreads, 0, cuda_stream, w, values, vectors);
}

}  // namespace wals::cuda
