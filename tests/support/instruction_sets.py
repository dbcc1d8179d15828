"""Instruction sets of the native module."""

#: Sets that have kernels of their own for top-k alone; the others are those of avx512.
TOPK_ONLY = {"amx", "avx512vnni"}
