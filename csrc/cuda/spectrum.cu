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
    const int64_t P = in_pairs(D), numbers = 3 * P * P + 4 * P * kPair + P + 1;
    return numbers * int64_t(sizeof(double)) + (2 * P / kPair + kMostSweeps) * int64_t(sizeof(int));
}

void spectrum(const double* gram, int64_t D, const double* start, double* values, double* vectors, void* workspace,
              Stream stream) {
    const int P = int(in_pairs(D)), pairs = P / kPair;
    auto* number = static_cast<double*>(workspace);
    const auto take = [&](int64_t n) { return (number += n) - n; };
    SpectrumWork w = {};
    w.D = int(D), w.P = P, w.rounds = 2 * pairs - 1, w.sweeps = pairs == 1 ? 1 : kMostSweeps;
    w.basis = take(int64_t{P} * P), w.row_norm = take(P), w.rounding = take(1);
    for (int i = 0; i < 2; ++i) {
        w.matrix[i] = take(int64_t{P} * P);
        w.turns[i] = take(int64_t{P} * kPair), w.own[i] = take(int64_t{P} * kPair);
    }
    w.rotations = reinterpret_cast<int*>(number);
    w.turned[0] = w.rotations + kMostSweeps, w.turned[1] = w.turned[0] + pairs;
    launch(spectrum_start_kernel, unsigned(P), kPairThreads, 0, stream, w, gram, start);
    launch(spectrum_rounding_kernel, 1, kPairThreads, 0, stream, w);
    if (start) {
        launch(spectrum_product_kernel<false>, unsigned(pairs * pairs), kPairThreads, 0, stream, w.matrix[0], w.basis,
               P, w.matrix[1]);
        launch(spectrum_product_kernel<true>, unsigned(pairs * (pairs + 1) / 2), kPairThreads, 0, stream, w.basis,
               w.matrix[1], P, w.matrix[0]);
    }
    const int repeats = pairs == 1 ? kMostSweeps : 1, launches = w.sweeps * w.rounds;
    const unsigned rest = unsigned(pairs * (pairs + 1) / 2 + pairs * pairs);
    for (int n = 0; n <= launches; ++n) {
        const int together = n < launches ? pairs : 0;
        launch(spectrum_turn_kernel, unsigned(together) + rest, kPairThreads, 0, stream, w, n, together, repeats);
    }
    launch(spectrum_finish_kernel, unsigned((D + 15) / 16), kRankThreads, 0, stream, w, values, vectors);
}

}  // namespace wals::cuda
