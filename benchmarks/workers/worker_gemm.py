"""float32 matrix product of one library in this process: the ceiling. Prints one JSON object."""

import json
import sys

from lib.common import median_seconds, threadpools


def main() -> None:
    spec = json.loads(sys.argv[1])
    size, threads = spec["size"], spec["threads"]
    import numpy as np

    rng = np.random.default_rng(0)
    a, b = (rng.random((size, size), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    if spec["library"] == "torch":
        import torch

        torch.set_num_threads(threads)
        a, b, out = map(torch.from_numpy, (a, b, out))
        library = "MKL" if torch.backends.mkl.is_available() else "BLAS"
        label = f"{library} through torch {torch.__version__.split('+')[0]}"
        seconds = median_seconds(lambda: torch.mm(a, b, out=out), seconds=1.0)
    else:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(threads):
            seconds = median_seconds(lambda: np.matmul(a, b, out=out), seconds=1.0)
        label = f"BLAS of numpy {np.__version__}"
    gflops = 2 * size**3 / seconds["median"] / 1e9
    print(json.dumps({"library": label, "threads": threads, "gflops": gflops, "threadpools": threadpools()}))


if __name__ == "__main__":
    main()
