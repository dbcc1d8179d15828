"""The command line ``wals-gpu``: a module for each command, with its arguments and its help beside what it does."""

from wals_gpu.cli.entry import main

__all__ = ["main"]
