"""The cases of the self-check alone, without times and without a file: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck .venv/bin/python benchmarks/workers/gpu_check.py

`--dry-run` computes the cases on the CPU and compares nothing. Exit status 1 where a case fails.
"""

import sys

import numpy as np

from wals_gpu.backends import self_check
from wals_gpu.backends.cpu import CpuBackend


def main() -> int:
    cpu = CpuBackend()
    if "--dry-run" in sys.argv[1:]:
        found = [len(case.compute(cpu, np.float32)) for case in self_check.cases() if case.tolerance]
        print(f"{len(found)} cases can be computed (cpu)")
        return 0
    backend = self_check.cuda_backend()
    wrong = [
        f"{case.family} ({case.sizes}): {what}"
        for case in self_check.cases()
        if (what := self_check.compare(case, backend, cpu)[1])
    ]
    print("\n".join(wrong) or f"all cases are right ({backend.name})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
