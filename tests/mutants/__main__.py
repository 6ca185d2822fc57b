"""Break the code in every known way, one at a time, and say which test notices it.

    python tests/mutants                    every mutant
    python tests/mutants window "half rows" those whose name holds one of these words
    python tests/mutants --list             their names, without running anything

It works on a copy of the tree, as it is on disk, in a temporary folder. A mutant of csrc/ is built
there first. The exit status is 1 if a mutant survives its tests, or if its tests fail without it.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutant import ROOT, Mutant

HERE = Path(__file__).parent


def all_mutants() -> list[Mutant]:
    """The mutants of every file beside this one."""
    files = sorted(path for path in HERE.glob("*.py") if path.stem not in ("__main__", "mutant"))
    return [mutant for path in files for mutant in runpy.run_path(str(path))["MUTANTS"]]


def copy_tree(target: Path) -> None:
    """Everything that git would take, and the compiled libraries."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    built = [str(path.relative_to(ROOT)) for path in ROOT.glob("attn_kernels/*.so")]
    for name in [*filter(None, listed.stdout.split("\0")), *built]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(root: Path) -> None:
    environment = {**os.environ, "ATTN_KERNELS_TESTING": "1"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the mutant does not compile:\n{done.stdout}{done.stderr}")


def run_tests(root: Path, tests: str) -> tuple[int, str]:
    """pytest's exit status, and the test that failed first."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *shlex.split(tests)], cwd=root, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else (done.stdout + done.stderr)[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run the mutants whose name holds one of these")
    parser.add_argument("--list", action="store_true", help="print the names only")
    options = parser.parse_args()
    words = options.words or [""]
    mutants = [m for m in all_mutants() if any(word in m.name for word in words)]
    if options.list:
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in mutants))
        return 0
    if not mutants:
        parser.error(f"no mutant has a name with {' or '.join(map(repr, words))} in it")
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_tree(root)
        if any(mutant.file.startswith("csrc/") for mutant in mutants):
            print("building the copy", flush=True)
            build(root)
        healthy: dict[str, tuple[int, str]] = {}
        for number, mutant in enumerate(mutants, 1):
            print(f"[{number}/{len(mutants)}] {mutant.name}: ", end="", flush=True)
            start = time.monotonic()
            if mutant.tests not in healthy:
                healthy[mutant.tests] = run_tests(root, mutant.tests)
            status, why = healthy[mutant.tests]
            if status:
                bad += 1
                print(f"ITS TESTS FAIL WITHOUT IT: {why}", flush=True)
                continue
            native = mutant.file.startswith("csrc/")
            text = mutant.apply(root)
            if native:
                build(root)
            status, why = run_tests(root, mutant.tests)
            (root / mutant.file).write_text(text)
            if native:
                build(root)
            if status == 1:  # tests ran and one failed; anything else is no verdict
                print(f"caught by {why} ({time.monotonic() - start:.0f} s)", flush=True)
            else:
                bad += 1
                print(f"SURVIVED {mutant.tests} (pytest ended with {status})", flush=True)
    print(f"{len(mutants) - bad} of {len(mutants)} mutants caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
