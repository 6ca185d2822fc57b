"""README's tables, generated from recorded results: `python -m benchmarks.readme FILE.json`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def section(path: Path) -> str:
    """One table per operation, dtype and direction, and where the figures come from."""
    data = json.loads(path.read_text())
    found = data["environment"]
    lines = [
        f"Measured with `python -m benchmarks` on {found['device']}, torch {found['torch']},"
        f" commit {found['commit']}, {found['date'][:10]}:"
        f" [{path.name}](benchmarks/results/{path.name}).",
    ]
    titles: dict[str, list[dict]] = {}
    for result in data["results"]:
        direction = "forward" if result["direction"] == "forward" else "forward + backward"
        threads = f"{result['threads']} thread" + "s" * (result["threads"] > 1)
        title = f"{result['op']}, {result['dtype']}, {direction}, {threads}"
        titles.setdefault(title, []).append(result)
    for title, results in titles.items():
        lines += [
            "",
            f"| {title} | ours | best peer | times faster | GFLOP/s |",
            "|---|---|---|---|---|",
        ]
        for result in results:
            ours = statistics.median(result["entries"]["attn_kernels"]["seconds"])
            peer = statistics.median(result["entries"][result["best_peer"]]["seconds"])
            lines.append(
                f"| {result['shape']} | {1e3 * ours:.2f} ms | {1e3 * peer:.2f} ms"
                f" ({result['best_peer']}) | {result['speedup']:.2f}"
                f" | {result['flops'] / ours / 1e9:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + BEGIN + section(Path(arguments[0])) + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
