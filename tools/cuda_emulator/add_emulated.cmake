# add_emulated(module SOURCES kernels.cu ... BINDINGS module.cpp ... [DEFINITIONS ...])
#
# Two Python modules from the same sources: `module`, and `module_checked` with instrumented kernels. BINDINGS name their
# module by EMULATED_MODULE: PYBIND11_MODULE(EMULATED_MODULE, m). For tests; nothing of it is shipped.
set(EMULATOR_DIR ${CMAKE_CURRENT_LIST_DIR})

# For fmaf() in one instruction. Products and sums that the source does not fuse stay apart, so that both modules, and
# all machines, give the same bits.
include(CheckCXXSourceRuns)
set(CMAKE_REQUIRED_FLAGS "-march=x86-64-v3")
check_cxx_source_runs("int main() { return !__builtin_cpu_supports(\"avx2\") || !__builtin_cpu_supports(\"fma\"); }"
  EMULATOR_X86_64_V3)
unset(CMAKE_REQUIRED_FLAGS)
set(EMULATOR_MACHINE $<$<BOOL:${EMULATOR_X86_64_V3}>:-march=x86-64-v3>)

foreach(checked 0 1)
  set(engine emulator_engine_${checked})
  add_library(${engine} OBJECT)
  foreach(part engine schedule access tensor memory fault watchdog checked runtime)
    target_sources(${engine} PRIVATE ${EMULATOR_DIR}/${part}.cpp)
  endforeach()
  target_compile_options(${engine} PRIVATE -O3 -g1 ${EMULATOR_MACHINE})
  if(checked)
    target_compile_definitions(${engine} PRIVATE EMU_CHECKED)
  endif()
endforeach()

function(add_emulated module)
  cmake_parse_arguments(ARG "" "" "SOURCES;BINDINGS;DEFINITIONS" ${ARGN})
  foreach(checked 0 1)
    set(name ${module})
    set(definitions ${ARG_DEFINITIONS})
    set(flags "")
    if(checked)
      set(name ${module}_checked)
      list(APPEND definitions EMU_CHECKED)
      # Accesses stay those of the source: not merged into vectors, nor stores into wider ones.
      set(flags -fsanitize=thread "SHELL:--param tsan-instrument-func-entry-exit=0" -fno-tree-vectorize
        -fno-store-merging)
    endif()
    add_library(${name}_kernels OBJECT ${ARG_SOURCES})
    set_source_files_properties(${ARG_SOURCES} PROPERTIES LANGUAGE CXX)
    target_compile_options(${name}_kernels PRIVATE
      -x c++ -O2 -g1 -Wno-unknown-pragmas -fno-math-errno -ffp-contract=off -ftls-model=initial-exec ${EMULATOR_MACHINE} ${flags})
    target_compile_definitions(${name}_kernels PRIVATE ${definitions})
    target_include_directories(${name}_kernels PRIVATE ${EMULATOR_DIR}/..)  # "cuda_emulator/emulator.h"
    pybind11_add_module(${name} MODULE NO_EXTRAS ${ARG_BINDINGS} $<TARGET_OBJECTS:${name}_kernels>
      $<TARGET_OBJECTS:emulator_engine_${checked}>)
    target_compile_definitions(${name} PRIVATE EMULATED_MODULE=${name} ${definitions})
    target_include_directories(${name} PRIVATE ${EMULATOR_DIR}/..)
    target_compile_options(${name} PRIVATE -O0)  # they hand over what kernels do
    target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  endforeach()
endfunction()
