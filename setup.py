"""Build attn_kernels: with the C++ kernels where there is a compiler, pure Python otherwise.

Environment variables:
    ATTN_KERNELS_CPU=0      pure Python: the reference backend, no compiler, no torch at build time
    ATTN_KERNELS_CUDA=1     demand the CUDA kernels (this release has none, so this is an error)
    ATTN_KERNELS_TESTING=1  also build attn_kernels._testing, which shows C++ rules to the tests
    DEBUG=1                 -O0 -g instead of -O3
    CXX, MAX_JOBS           the compiler, and how many of it at a time
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent.resolve()
INSTALL = "pip install --no-build-isolation -e ."
MIN_TORCH = (2, 11)

# Sources by group. Paths are relative to this folder: setuptools refuses absolute ones.
BINDING = ["csrc/bindings.cpp"]
CPU = [
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/attention_amx.cpp",
    "csrc/cpu/attention_avx512_bf16.cpp",
    "csrc/cpu/attention_avx512.cpp",
    "csrc/cpu/attention_avx2.cpp",
    "csrc/cpu/attention_portable.cpp",
]
TESTING = ["csrc/testing.cpp"]
# CUDA sources go here: csrc/cuda/*.cu, no torch in them, called by bindings.cpp. They are built if
# nvcc is found, whatever GPU is present; ATTN_KERNELS_CUDA=1 makes a missing nvcc an error.
CUDA: list[str] = []

HEADERS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.h", "*.inc")
    for path in (ROOT / "csrc").rglob(pattern)
)


def stop(message: str) -> None:
    sys.exit(f"attn_kernels: {message}")


def is_set(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "off")


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, which must exist if set, or the first one on PATH."""
    if os.environ.get("CXX"):
        if shutil.which(os.environ["CXX"].split()[0]) is None:
            stop(f"CXX={os.environ['CXX']} is not found")
        return os.environ["CXX"]
    return next(filter(shutil.which, ("c++", "g++", "clang++")), None)


def import_build_tools():
    """torch's extension builder, or an instruction in one line."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        stop(
            f"building the C++ kernels needs torch, and this build cannot import it ({error}).\n"
            f"  With torch installed, run:    {INSTALL}\n"
            "  Without the C++ kernels, run: ATTN_KERNELS_CPU=0 pip install -e ."
        )
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        stop(f"the C++ kernels need torch >= 2.11, got {torch.__version__}")
    return cpp_extension


def compile_flags() -> list[str]:
    # -g0, -fno-lto and -fno-wrapv undo what a Python may have been built with. There is no -march:
    # each file of csrc/cpu picks its instruction set, and the library runs on any CPU.
    common = ["-fvisibility=hidden", "-Wall", "-Wno-psabi", "-fno-lto", "-fno-wrapv"]
    if is_set("DEBUG"):
        return [*common, "-O0", "-g"]
    return [*common, "-O3", "-g0", "-fno-math-errno"]


def system_headers(folders: list[str]) -> list[str]:
    """Flags for the headers of others, of which the compiler is not to warn."""
    return [word for folder in folders for word in ("-isystem", folder)]


def library(cpp_extension) -> Extension:
    """The kernels and their binding on torch's stable ABI: no Python in it, torch loads it."""
    extension = cpp_extension.CppExtension(
        "attn_kernels._C",
        sources=BINDING + CPU,
        depends=HEADERS,
        extra_compile_args=[*compile_flags(), "-DTORCH_TARGET_VERSION=0x020b000000000000"],
        extra_link_args=["-fno-lto"],
        py_limited_api=True,
    )
    extension.extra_compile_args += system_headers(extension.include_dirs)  # those of torch
    extension.include_dirs = [str(ROOT / "csrc")]
    return extension


def testing_module() -> Extension:
    """C++ rules as Python functions. An ordinary extension module, for this Python only."""
    try:
        import pybind11
    except ImportError:
        stop("ATTN_KERNELS_TESTING=1 needs pybind11: pip install pybind11")
    return Extension(
        "attn_kernels._testing",
        sources=TESTING,
        depends=HEADERS,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=[*compile_flags(), *system_headers([pybind11.get_include()])],
        extra_link_args=["-fno-lto"],
        language="c++",
    )


def build_command(cpp_extension) -> type:
    class Build(cpp_extension.BuildExtension):
        """One ninja folder per extension: they compile the same files with other flags."""

        def finalize_options(self) -> None:
            super().finalize_options()
            if self.editable_mode:  # pip's is temporary: `make` goes on from what was compiled
                tag = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
                self.build_temp = os.path.join("build", tag)

        def build_extension(self, ext: Extension) -> None:
            build_temp = self.build_temp
            self.build_temp = os.path.join(build_temp, ext.name)
            super().build_extension(ext)
            self.build_temp = build_temp

    return Build


def wheel_command() -> type:
    from setuptools.command.bdist_wheel import bdist_wheel

    class Wheel(bdist_wheel):
        """One wheel for every Python 3: the library has no Python in it."""

        def run(self) -> None:
            # What an earlier build left there would be packed too.
            shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
            super().run()

        def get_tag(self) -> tuple[str, str, str]:
            return "py3", "none", super().get_tag()[2]

    return Wheel


def native_parts() -> dict:
    """The arguments of setup() that build C++; none of them for a pure Python install."""
    if is_set("ATTN_KERNELS_CUDA") and not CUDA:
        stop("ATTN_KERNELS_CUDA=1, but this release has no CUDA kernels")
    if os.environ.get("ATTN_KERNELS_CPU") == "0":
        return {}
    compiler = find_compiler()
    if compiler is None:
        print("attn_kernels: no C++ compiler found: installing without the C++ kernels.")
        return {}
    os.environ["CXX"] = compiler
    # ninja from pip, also where its environment is not activated
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    cpp_extension = import_build_tools()
    parts = {
        "ext_modules": [library(cpp_extension)],
        "cmdclass": {"build_ext": build_command(cpp_extension), "bdist_wheel": wheel_command()},
    }
    if is_set("ATTN_KERNELS_TESTING"):  # a module for one Python: the wheel keeps its usual tag
        parts["ext_modules"].append(testing_module())
        del parts["cmdclass"]["bdist_wheel"]
    return parts


setup(**native_parts())
