"""Door to :mod:`wals_gpu.compat.accel`: ``python -m wals_gpu.accel SCRIPT`` runs programs of implicit unchanged."""

import sys

from wals_gpu.compat.accel import install, main, uninstall

__all__ = ["install", "main", "uninstall"]

if __name__ == "__main__":
    main(sys.argv[1:])
