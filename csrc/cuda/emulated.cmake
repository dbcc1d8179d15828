# The project's kernels over the emulator, behind the interface of wals_gpu._cuda.
set(CUDA_DIR ${CMAKE_CURRENT_LIST_DIR})
add_emulated(_emulated
  SOURCES ${CUDA_DIR}/dense.cu ${CUDA_DIR}/solve_exact.cu ${CUDA_DIR}/solve_giant.cu ${CUDA_DIR}/solve_iterative.cu
    ${CUDA_DIR}/topk.cu ${CUDA_DIR}/transpose.cu
  BINDINGS ${CUDA_DIR}/../bindings/cuda_module.cpp)
