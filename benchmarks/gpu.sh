#!/usr/bin/env bash
# The first half hour on a machine with a GPU, in an environment with the dev extra and torch for CUDA: builds the CUDA
# kernels, lets the device check itself, runs the kernels' tests on it, then all four tools of compute-sanitizer, then
# measures, and profiles one fit.
#
#   benchmarks/gpu.sh             results/gpu.json, results/gpu_profile.txt
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

# Nothing else makes sense where one of these fails.
on_device env WALS_GPU_CUDA=1 "$python" setup.py build_ext --inplace
[ $failed = 0 ] || exit 1
on_device timeout 120 "$python" -m wals_gpu doctor --gpu
[ $failed = 0 ] || exit 1

on_device env WALS_GPU_TEST_DEVICE=cuda timeout 300 "$python" -m pytest -q "${tests[@]}"
# Every family of kernels once more, each allocation by itself, so that what lies beyond an array is not another one.
# racecheck sees shared memory, initcheck global memory that was never written to.
if [ -n "$dry" ] || command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        on_device env PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 300 compute-sanitizer --tool $tool --error-exitcode 1 \
            "$python" benchmarks/workers/gpu_check.py
    done
else
    echo "compute-sanitizer is not in PATH: left out" >&2
fi
if [ -n "$dry" ]; then
    WALS_GPU_TEST_DEVICE=cuda "$python" -m pytest -q --collect-only "${tests[@]}" | tail -1
    "$python" benchmarks/workers/gpu_check.py $dry
fi
timeout 240 "$python" benchmarks/cases/bench_gpu.py $dry || failed=1
timeout 120 "$python" benchmarks/cases/bench_gpu.py --profile $dry || failed=1
if [ -n "$dry" ] || command -v nsys >/dev/null; then
    on_device timeout 180 nsys profile --force-overwrite true --output gpu_profile --trace cuda,osrt \
        "$python" benchmarks/cases/bench_gpu.py --profile
fi
exit $failed
