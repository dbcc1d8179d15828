#!/usr/bin/env bash
# Builds the native module with sanitizers, beside the ordinary one, and runs tests on it.
#
#   tools/sanitize.sh address,undefined [pytest arguments]     out-of-bounds, use after free, undefined behaviour
#   tools/sanitize.sh thread [pytest arguments]                data races
#
# Without pytest arguments: every test of native code. A finding ends the run with a report and a status that is not 0.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
sanitizers=${1:?say which sanitizers: address,undefined or thread}
shift
python=${PYTHON:-python3}
place=$root/build/sanitize-${sanitizers//,/-}
mkdir -p "$place"

# A copy of the package and the tests, since the folder that a test runs from comes before what is installed.
rm -rf "$place"/{wals_gpu,tests}
cp -r "$root"/{wals_gpu,tests,pyproject.toml} "$place"
rm -f "$place"/wals_gpu/*.so
(cd "$root" && WALS_GPU_CUDA=0 WALS_GPU_BUILD_TYPE=RelWithDebInfo WALS_GPU_CMAKE_ARGS="-DWALS_SANITIZE=$sanitizers" \
    "$python" setup.py -q build_ext --build-lib "$place" --build-temp "$place/cmake")

# The interpreter is not built with sanitizers: their runtime has to be loaded before it. Python frees little at exit, so
# leaks are not looked for; LeakSanitizer would report NumPy's and Arrow's.
case $sanitizers in
    *thread*) runtime=libtsan.so ;;
    *) runtime=libasan.so ;;
esac
export LD_PRELOAD="$(${CXX:-c++} -print-file-name=$runtime) $(${CXX:-c++} -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
export OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc PYTHONFAULTHANDLER=1
cd "$place"
if [ $# -eq 0 ]; then
    set -- tests/backends/test_native.py tests/backends/test_solve_rows.py tests/backends/test_solve_iterative.py tests/backends/test_topk.py \
        tests/backends/test_neighbors.py tests/backends/test_topk_neighbors.py \
        tests/backends/test_hard_numbers.py tests/whole/test_concurrency.py
    # Counts on a row being solved within a fifth of a second; with sanitizers it takes longer.
    set -- "$@" --deselect tests/backends/test_native.py::test_a_signal_ends_a_run_of_rows_that_threads_share
    # Its operator new ends the process where there is no memory, and its shadow needs the address space that is limited.
    [[ $sanitizers != *thread* ]] ||
        set -- "$@" --deselect tests/whole/test_concurrency.py::test_memory_that_runs_out_is_a_memory_error
fi
exec "$python" -m pytest -q -p no:cacheprovider "$@"
