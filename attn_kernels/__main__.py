"""`python -m attn_kernels`: what runs on this machine, and why the rest does not."""

import platform

import torch

from . import __version__
from .core.backends import Backend, backends


def table(found: dict[str, Backend]) -> str:
    """One line per backend: its name, whether it is available, and what it found or lacks."""
    rows = [
        (name, "yes" if backend.available else "no", backend.detail or backend.reason)
        for name, backend in found.items()
    ]
    rows.insert(0, ("backend", "runs", "detail"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


def main() -> None:
    """Print versions and the table."""
    python, machine = platform.python_version(), f"{platform.system()} {platform.machine()}"
    print(f"attn_kernels {__version__}, torch {torch.__version__}, Python {python}, {machine}")
    threads = torch.get_num_threads()
    print(f"torch uses {threads} thread{'s' * (threads != 1)}")
    print()
    print(table(backends()))


if __name__ == "__main__":
    main()
