"""Data sets: an embedded one that needs no download, readers of public ones, and a generator of any size."""

from wals_gpu.datasets.debian import DebianPackages, load_debian_packages
from wals_gpu.datasets.movielens import MovieLens, load_movielens
from wals_gpu.datasets.synthetic import SHAPES, synthetic

__all__ = ["SHAPES", "DebianPackages", "MovieLens", "load_debian_packages", "load_movielens", "synthetic"]
