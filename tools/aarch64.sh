#!/usr/bin/env bash
# The package for linux-aarch64, cross-compiled, and its native tests under qemu-user, by Debian's Python of that
# processor with NumPy and SciPy as PyPI has them for it. A tenth of the speed of a processor, so an hour or two for all:
#
#   tools/aarch64.sh                                   every test of the native module on the CPU
#   tools/aarch64.sh tests/backends/test_native.py -q  pytest's arguments
#
# A Debian or Ubuntu machine with g++-aarch64-linux-gnu, qemu-user-static, cmake, ninja and pybind11 ($PYTHON has the
# last three; python3 without). Everything is made in build/aarch64.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=$root/build/aarch64
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- -q "$root"/tests/backends/test_{native,neighbors,solve_rows,solve_iterative,topk,topk_neighbors,hard_numbers,high_rank}.py

"$root/tools/debian_python.sh" bookworm arm64 3.11 "$place/debian"
if [ ! -e "$place/packages" ]; then
    "$python" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile --target "$place/part" \
        --only-binary=:all: --implementation cp --python-version 3.11 --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_17_aarch64 numpy scipy tqdm safetensors pyarrow threadpoolctl \
        pytest iniconfig packaging pluggy pygments hypothesis sortedcontainers pandas python-dateutil six
    mv "$place/part" "$place/packages"
fi

suffix=.cpython-311-aarch64-linux-gnu.so
bin=$(dirname "$(command -v "$python")")
PATH=$bin:$PATH cmake -S "$root/csrc" -B "$place/native" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_CXX_FLAGS="-idirafter $place/debian/usr/include" \
    -DPython_EXECUTABLE="$(command -v "$python")" -DPython_INCLUDE_DIR="$place/debian/usr/include/python3.11" \
    -DPYTHON_MODULE_EXTENSION=$suffix -Dpybind11_DIR="$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')" \
    > "$place/configured.txt" || { cat "$place/configured.txt"; exit 1; }
PATH=$bin:$PATH cmake --build "$place/native"

# A copy of the package without modules of this processor, and a folder to run in that has no other copy.
rm -rf "$place/package"
mkdir -p "$place/package" "$place/empty"
(cd "$root" && tar -c --exclude='*.so' --exclude=__pycache__ wals_gpu) | tar -x -C "$place/package"
cp "$place/native/_cpu$suffix" "$place/package/wals_gpu/"
export PYTHONPATH=$place/package:$place/packages PYTHONDONTWRITEBYTECODE=1
tests=()
for argument in "$@"; do
    [ -e "$root/${argument%%::*}" ] && argument=$root/$argument # relative to the checkout
    tests+=("$argument")
done
cd "$place/empty"
"$place/debian/usr/bin/python" -m pytest -p no:cacheprovider "${tests[@]}"
