"""Builds the native module with CMake and Ninja; everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


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
            *os.environ.get("WALS_GPU_CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(["cmake", "--build", "."], cwd=build, check=True)


setup(ext_modules=[Extension("wals_gpu._cpu", sources=[])], cmdclass={"build_ext": CMakeBuild})
