"""Builds the native modules with CMake and Ninja; everything else is in pyproject.toml.

WALS_GPU_CUDA: 1 builds the CUDA kernels and fails without nvcc, 0 leaves them out, auto (the default) builds them
where an nvcc is found and works.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


OLDEST_NVCC = (12, 4)  # what it does not know yet is left out: 10.0 and 12.0 before 12.8 (csrc/CMakeLists.txt)


def find_nvcc() -> tuple[str | None, str]:
    """An nvcc to build with, or None and why not."""
    wanted = os.environ.get("WALS_GPU_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"WALS_GPU_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None, "WALS_GPU_CUDA=0"
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    why = "no nvcc in PATH or CUDA_HOME"
    if nvcc:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
        found = re.search(r"release (\d+)\.(\d+)", done.stdout)
        if done.returncode == 0 and found and (int(found[1]), int(found[2])) >= OLDEST_NVCC:
            return nvcc, ""
        oldest = ".".join(map(str, OLDEST_NVCC))
        why = f"{nvcc} is {found[0] if found else 'no nvcc'}; {oldest} is the oldest that will do"
    if wanted == "1":
        raise SystemExit(f"WALS_GPU_CUDA=1, but the CUDA kernels cannot be built: {why}")
    return None, why


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", str(ROOT / "csrc"), "-G", "Ninja",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('WALS_GPU_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
        ]  # fmt: skip
        nvcc, why = find_nvcc()
        print(f"CUDA kernels: {nvcc or 'left out: ' + why}")
        configure += os.environ.get("WALS_GPU_CMAKE_ARGS", "").split()
        cuda = ["-DWALS_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        may_fail = os.environ.get("WALS_GPU_CUDA", "auto") == "auto"
        if nvcc and subprocess.run(configure + cuda, cwd=build, check=not may_fail).returncode != 0:
            print("CUDA kernels: left out: this nvcc does not work with this C++ compiler (see above)")
            (build / "CMakeCache.txt").unlink(missing_ok=True)
            nvcc = None
        if not nvcc:
            subprocess.run([*configure, "-DWALS_CUDA=OFF"], cwd=build, check=True)
        subprocess.run(["cmake", "--build", ".", "--target", "_cpu"], cwd=build, check=True)
        command = ["cmake", "--build", ".", "--target", "_cuda"]
        if nvcc and subprocess.run(command, cwd=build, check=not may_fail).returncode != 0:
            print("CUDA kernels: left out: they do not compile here (see above)")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()  # the module that setuptools knows of
        for module in (Path(self.build_lib) / "wals_gpu").glob("_cuda.*.so"):
            shutil.copy(module, ROOT / "wals_gpu")


setup(ext_modules=[Extension("wals_gpu._cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
