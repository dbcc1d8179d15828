"""Door to :mod:`wals_gpu.data.files`: the folders that models and checkpoints are."""

from wals_gpu.data.files import load_folder, load_npz, remove_folder, save_folder

__all__ = ["load_folder", "load_npz", "remove_folder", "save_folder"]
