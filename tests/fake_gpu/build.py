"""A Python with the CUDA build of torch, on a machine without a GPU: DIR/python. README.md says why.

python tests/fake_gpu/build.py [DIR]      default: build/fake_gpu; downloads 0.8 GB the first time
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TORCH = "torch==2.11.0"
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"]
HEADERS = "nvidia-cuda-runtime==13.0.96"  # of the CUDA that this torch is built for
OURS, OUR_NAMES = re.compile(r"lib(cu|nv|nccl)"), ("cu", "nv", "nccl")  # made here
LAUNCHER = """#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH="$here/lib" TRITON_LIBCUDA_PATH="$here/lib"
export TRITON_CACHE_DIR="$here/triton" TORCHINDUCTOR_CACHE_DIR="$here/inductor"
exec "$here/venv/bin/python" "$@"
"""


def check_machine() -> None:
    """Stop, and name what is missing."""
    if not sys.platform.startswith("linux"):
        sys.exit(f"the CUDA build of torch needs Linux, this is {sys.platform}")
    for tool, package in (("cc", "a C compiler"), ("readelf", "binutils"), ("nm", "binutils")):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is missing: install {package}")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        sys.exit(f"{header} is missing, with which Triton compiles: install Python's headers")


def install(folder: Path) -> None:
    """torch without what it wants of CUDA, the tools of the tests, and the headers of CUDA."""
    tools = ROOT / "requirements" / "test.txt"
    listed = "\n".join([TORCH, *TORCH_NEEDS, HEADERS, tools.read_text()])
    done = folder / "installed"
    if done.exists() and done.read_text() == listed:
        return
    run(sys.executable, "-m", "venv", folder / "venv")
    pip = [folder / "venv/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run(*pip, "-r", tools, *TORCH_NEEDS)
    run(*pip, "--no-deps", TORCH)
    run(*pip, "--no-deps", "--upgrade", "--target", folder / "cuda", HEADERS)
    done.write_text(listed)


def run(*command: str | Path) -> str:
    """What the command prints; its errors end this program."""
    words, environment = [str(x) for x in command], os.environ | {"LC_ALL": "C"}
    result = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment)
    if result.returncode:
        sys.exit(f"failed: {' '.join(words)}")
    return result.stdout


def wanted_functions(libraries: list[Path]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """What these libraries want of those that are made here; and the versions of its names."""
    wanted: dict[str, set[str]] = defaultdict(set)
    versions: dict[str, str] = {}
    defined: set[str] = set()
    for path in libraries:
        text = run("readelf", "--wide", "--dynamic", "--version-info", "--dyn-syms", path)
        needed = [x for x in re.findall(r"\(NEEDED\).*\[(.+)\]", text) if OURS.match(x)]
        named = dict(re.findall(r"File: (\S+) .*\n.*  Name: (\S+)", text))
        versions |= {library: version for library, version in named.items() if OURS.match(library)}
        library_of = {version: library for library, version in versions.items()}
        symbols = r"^ +\d+: \S+ +\S+ \S+ +(GLOBAL|WEAK) +\S+ +(\S+) ([^\s@]+)(?:@+(\S+))?"
        for bind, section, name, version in re.findall(symbols, text, re.MULTILINE):
            if section != "UND":
                defined.add(name)
            elif version in library_of:
                wanted[library_of[version]].add(name)
            elif needed and not version and bind == "GLOBAL" and name.startswith(OUR_NAMES):
                wanted[needed[-1]].add(name)  # without a version any of them will do
        for library in needed:
            wanted[library] |= set()
    return {library: names - defined for library, names in wanted.items()}, versions


def make_libraries(folder: Path, packages: Path) -> None:
    """Compile cuda.c, with functions that return 0 beside it, into every library."""
    lib, source = folder / "lib", HERE / "cuda.c"
    made = lib / "made"
    inputs = source.read_text() + Path(__file__).read_text() + (folder / "installed").read_text()
    if made.exists() and made.read_text() == inputs:
        return
    lib.mkdir(exist_ok=True)
    nvidia = packages / "triton" / "backends" / "nvidia"
    includes = [f"-I{folder / 'cuda/nvidia/cu13/include'}", f"-I{nvidia / 'include'}"]
    flags = ["-std=c11", "-O1", "-fPIC", "-Wall", "-Wno-unused-value"]
    run("cc", *flags, *includes, "-c", source, "-o", lib / "cuda.o")
    written = set(re.findall(r" T (\w+)", run("nm", lib / "cuda.o")))
    wanted, versions = wanted_functions(sorted((packages / "torch" / "lib").glob("*.so*")))
    # Triton's own calls; and what the runtime's functions, asked for a driver's, look up.
    by_triton = set(re.findall(r"\b(cu[A-Z]\w+)\(", (nvidia / "driver.c").read_text()))
    wanted["libcuda.so.1"] |= by_triton | {x for x in written if re.match("cu[A-Z]", x)}
    for library, names in wanted.items():
        zeros, exports = lib / f"{library}.c", lib / f"{library}.map"
        zeros.write_text("".join(f"long {x}(void) {{ return 0; }}\n" for x in names - written))
        globally = f"global: {'; '.join(names)}; " if names else ""
        exports.write_text(f"{versions.get(library, '')} {{ {globally}local: *; }};\n")
        run(
            "cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", zeros, lib / "cuda.o",
            f"-Wl,--version-script,{exports}", "-o", lib / library, "-ldl",
        )  # fmt: skip
    made.write_text(inputs)


def main() -> None:
    """Make what is missing of it."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "fake_gpu").resolve()
    check_machine()
    folder.mkdir(parents=True, exist_ok=True)
    install(folder)
    make_libraries(folder, next((folder / "venv").glob("lib/python3*/site-packages")))
    launcher = folder / "python"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    print(f"{launcher} is a Python with a GPU that computes nothing")


if __name__ == "__main__":
    main()
