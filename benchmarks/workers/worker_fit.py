"""One fit of one system in this process; started by bench_fit.py and others. Prints one JSON object."""

import importlib
import json
import sys
import warnings

import numpy as np

from lib.common import load_matrix, peak_rss_mib, reset_peak, threadpools
from lib.loss import row_residuals
from lib.systems import SYSTEMS, Recorder


def last_side_residual(matrix, user_factors, item_factors, fit, rows: int = 50) -> float:
    """Largest residual of some rows of the side solved last (the side with the smaller one)."""
    loss = {k: fit[k] for k in ("alpha", "ridge")}
    sides = (matrix, user_factors, item_factors), (matrix.T.tocsr(), item_factors, user_factors)
    largest = []
    for side, solved, other in sides:
        busy = np.flatnonzero(np.diff(side.indptr))
        sample = busy[:: max(1, busy.size // rows)]
        largest.append(float(row_residuals(side, solved, other, rows=sample, **loss).max()))
    return min(largest)


def main() -> None:
    spec = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    system = SYSTEMS[spec["system"]]
    module = importlib.import_module(system.module)
    matrix = load_matrix(spec["data"])
    recorder = Recorder(spec["checkpoints"], spec["folder"], spec["budget"])
    reset_peak()
    before = peak_rss_mib()
    options = system.options | spec.get("options", {})
    user_factors, item_factors = system.fit(matrix, recorder, **spec["fit"], **options)
    result = {
        "fit_seconds": recorder.fit_seconds(),
        "elapsed": recorder.elapsed,
        "peak_rss_mib": round(peak_rss_mib()),
        "peak_rss_before_fit_mib": round(before),
        "threadpools": threadpools(),
        "module_file": module.__file__,
    }
    if system.kind == "exact":
        matrix = load_matrix(spec["data"])  # as it was: a fit may have changed the values
        result["largest_residual"] = last_side_residual(matrix, user_factors, item_factors, spec["fit"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
