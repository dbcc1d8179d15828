"""A second opinion on the CUDA kernels: nvcc's PTX of them, interpreted on the CPU (docs/emulator.md).

parser.py reads PTX; threads.py, memory.py and operations.py are what instructions work on, instructions.py what each
does, tensor.py the mma of several chips; machine.py says which threads go on; launches.py has the backend's own host
code start kernels here.
"""
