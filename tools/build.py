"""Build the kernels in place and say how far that is; the compiler's commands go to build/log.

With --testing also attn_kernels._testing, which shows C++ rules to the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "build" / "log"
COMMAND = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
# What ninja prints when a file is compiled.
COMPILED = re.compile(r"\[(\d+)/(\d+)\] .*(csrc/\S+\.cpp) -o ")
TOLD = re.compile(r"warning:|^attn_kernels:")


def main() -> None:
    """Run setup.py; exit as it does, with its whole output if it fails."""
    testing = {"ATTN_KERNELS_TESTING": "1"} if "--testing" in sys.argv[1:] else {}
    LOG.parent.mkdir(exist_ok=True)
    print("building attn_kernels: the first time takes one to three minutes", flush=True)
    began = time.monotonic()
    with (
        LOG.open("w") as log,
        subprocess.Popen(
            COMMAND, cwd=ROOT, env=os.environ | testing, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        for line in process.stdout:
            log.write(line)
            if step := COMPILED.match(line):
                done, total, file = step.groups()
                print(f"  {time.monotonic() - began:4.0f} s  {done}/{total}  {file}", flush=True)
            elif TOLD.search(line):
                print(line, end="", flush=True)
    if process.returncode:
        sys.exit(f"{LOG.read_text()}\nthe build failed: see above")
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
