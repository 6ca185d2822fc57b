"""Check what the built objects and library export and need, with nm and objdump.

An inline function instantiated under -mavx512f is a weak symbol; the linker may keep that copy for
everybody, and an older CPU dies on it. So the object file of an instruction set may define no weak
symbol at all, and nothing that another object can see but its tables of kernels.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WEAK = "vVwWu"  # nm's letters for weak and unique symbols
ALLOWED_LIBRARIES = re.compile(
    r"(libc10|libtorch|libtorch_cpu|libstdc\+\+|libm|libgcc_s|libc|libpthread|libdl|ld-linux.*)\.so.*"
)


def output(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True
    ).stdout


def external_symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type, demangled name) of what the file defines for others."""
    listing = output("nm", "--defined-only", "--extern-only", "--demangle", *options, path)
    return [tuple(line.split(maxsplit=2)[1:]) for line in listing.splitlines() if line]


def check_object(path: Path) -> list[str]:
    """What is wrong with the object file of one instruction set."""
    isa = path.stem.removeprefix("attention_")
    symbols = external_symbols(path)
    errors = [f"weak symbol {name}" for kind, name in symbols if kind in WEAK]
    table = re.compile(rf"attn_kernels::{isa}::kernels_\w+")
    strong = [name for kind, name in symbols if kind not in WEAK]
    errors += [f"exports {name}" for name in strong if not table.fullmatch(name)]
    return errors if strong else [*errors, "exports no table of kernels"]


def check_library(path: Path) -> list[str]:
    """What is wrong with the shared library."""
    needed = re.findall(r"NEEDED\s+(\S+)", output("objdump", "-p", path))
    errors = [f"needs {name}" for name in needed if not ALLOWED_LIBRARIES.fullmatch(name)]
    exported = [name for _, name in external_symbols(path, "--dynamic")]
    errors += [
        f"exports {name}"
        for name in exported
        if not re.match(
            r"attn_kernels_cpu_\w+$|([a-z]+ )*std::|(_init|_fini|_edata|_end|__bss_start)$", name
        )
    ]
    return errors


def main() -> None:
    """Check the newest build; exit with 1 if anything is wrong."""
    objects = sorted(ROOT.glob("build/temp.*/attn_kernels._C/csrc/cpu/attention_*.o"))
    libraries = sorted((ROOT / "attn_kernels").glob("_C*.so"))
    if not objects or not libraries:
        sys.exit("no object files: run `make build` first")
    failed = False
    for path, check in [(x, check_object) for x in objects] + [
        (x, check_library) for x in libraries
    ]:
        errors = check(path)
        print(f"{path.relative_to(ROOT)}: {'; '.join(errors) or 'ok'}")
        failed |= bool(errors)
    sys.exit(failed)


if __name__ == "__main__":
    main()
