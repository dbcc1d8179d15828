#!/usr/bin/env bash
# The first ten minutes on a machine with a GPU: builds the CUDA kernels, tests them on the device, looks for bad
# accesses with compute-sanitizer if that is there, and measures. In an environment with the dev extra and torch for CUDA.
#
#   benchmarks/gpu.sh             results/gpu.json
#   benchmarks/gpu.sh --dry-run   says what it would run, and runs what needs no device
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
dry=${1:-}
if [ -n "$dry" ] && [ "$dry" != --dry-run ]; then
    echo "gpu.sh takes --dry-run or nothing, got $dry" >&2
    exit 2
fi
failed=0
on_device() {
    echo "+ $*"
    [ -n "$dry" ] || "$@" || { echo "failed: $*" >&2 && failed=1; }
}
tests=(tests/cuda/test_cuda_solve_rows.py tests/cuda/test_cuda_retrieval.py tests/cuda/test_cuda_backend.py)

on_device env WALS_GPU_CUDA=1 "$python" setup.py build_ext --inplace
on_device "$python" -c 'import wals_gpu; ok, why = wals_gpu.cuda_status(); assert ok, why'
[ $failed = 0 ] || exit 1  # nothing else makes sense then
on_device env WALS_GPU_TEST_DEVICE=cuda timeout 150 "$python" -m pytest -q "${tests[@]}"
if [ -n "$dry" ] || command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        on_device env WALS_GPU_TEST_DEVICE=cuda timeout 60 compute-sanitizer --tool $tool --error-exitcode 1 \
            "$python" -m pytest -q "${tests[0]}" -k "test_rows_of_every_length and 33-plus"
    done
fi
if [ -n "$dry" ]; then
    WALS_GPU_TEST_DEVICE=cuda "$python" -m pytest -q --collect-only "${tests[@]}" | tail -1
fi
timeout 240 "$python" benchmarks/cases/bench_gpu.py $dry || failed=1
exit $failed
