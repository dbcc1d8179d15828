"""The command line ``wals-gpu``."""

from wals_gpu.cli.entry import main

__all__ = ["main"]
