"""What a file of benchmarks.gpu says: bars reached or not, predictions and what came of them.

python -m benchmarks.gpu_summary DIR/gpu.json [--record]

--record also writes the form that is committed, benchmarks/results/DEVICE.json, which
benchmarks.results.load reads.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import OURS

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
LIMIT = 6000  # characters of a summary
RELATIVE = "L 8192 table 1024"


class Found:
    """The figures of a file by what they are of; None where there is none."""

    def __init__(self, data: Row) -> None:
        self.data = data

    def row(self, part: str, name: str) -> Row:
        return next((x for x in self.data.get(part, ()) if x["name"] == name), {})

    def rate(self, group: str, way: str, label: str, dim: int) -> float | None:
        """Our TFLOP/s."""
        row = self.row("results", f"{group} {way} {label} D {dim}")
        return row.get("providers", {}).get(OURS, {}).get("tflops")

    def of_rate(self, of: tuple[str, str, str, int], to: tuple[str, str, str, int]) -> float | None:
        return quotient(self.rate(*of), self.rate(*to))

    def over_peers(self, name: str) -> float | None:
        """The best peer's time over ours."""
        return over_peers(self.row("results", name))

    def tile(self, group: str, label: str, dim: int, direction: str, **config: Any) -> float | None:
        """Milliseconds of the first tile that has these settings; the default comes first."""
        of = f"{group} {label} D {dim} {direction} "
        rows = [x for x in self.data.get("tiles", ()) if x["name"].startswith(of)]
        rows = [x for x in rows if "milliseconds" in x and config.items() <= x["config"].items()]
        return rows[0]["milliseconds"] if rows else None


def quotient(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def over_peers(row: Row) -> float | None:
    times = {n: x["milliseconds"] for n, x in row.get("providers", {}).items() if x["milliseconds"]}
    ours = times.pop(OURS, None)
    return quotient(min(times.values(), default=None), ours)


def bars(found: Found) -> list[tuple[str, float | None, float]]:
    """What is promised, what was found, and from where on the promise is kept."""
    causal, relative = ("causal", "L 8192"), ("relative", RELATIVE)
    canvas, dense = ("local_2d", "64x64"), ("full", "L 4096")

    def ratio(way: str, a: tuple[str, str], b: tuple[str, str], dim: int) -> float | None:
        return found.of_rate((a[0], way, a[1], dim), (b[0], way, b[1], dim))

    rows = []
    for dim in (128, 64):
        for way in ("forward", "backward"):
            name = f"causal {way} L 16384 D {dim}"
            rows.append((f"{name} / best of cuDNN, flash", found.over_peers(name), 1.0))
        if dim == 128:
            rate = found.rate("relative", "forward", RELATIVE, dim)
            rows.append((f"relative forward {RELATIVE} D 128, TFLOP/s", rate, 450))
        text = f"relative backward D {dim} / causal backward"
        rows.append((text, ratio("backward", relative, causal, dim), 0.55))
        for way, least in (("forward", 0.85), ("backward", 0.75)):
            text = f"local 2-D {way} D {dim} / dense {way}"
            rows.append((text, ratio(way, canvas, dense, dim), least))
    return rows


# --- Predictions ---


@dataclass(frozen=True)
class Prediction:
    """A row of CONTRIBUTING's table: its text, the figures of its outcome, how they are written."""

    text: str
    figures: tuple[Callable[[Found], float | None], ...]
    form: str = "{:.2f} times"

    def outcome(self, found: Found) -> str:
        """Empty where a figure is missing."""
        values = [figure(found) for figure in self.figures]
        return "" if None in values else "; ".join(map(self.form.format, values))


def tiles(group: str, dim: int, direction: str, a: Row, b: Row) -> Callable[[Found], float | None]:
    """How many times as fast the tile with settings a is as the one with b, at length 8192."""
    at = group, RELATIVE if group == "relative" else "L 8192", dim, direction
    return lambda found: quotient(found.tile(*at, **b), found.tile(*at, **a))


def share_of_grad_table(found: Found) -> float | None:
    """Of a relative backward call."""
    row = found.row("kernels", f"relative backward {RELATIVE} D 128").get("milliseconds", {})
    backward = sum(ms for name, ms in row.items() if name != "attention_fwd_kernel")
    return quotient(row.get("grad_table_kernel"), backward)


def canvas_kernels(found: Found) -> float | None:
    """grad_kv's time over grad_q's."""
    row = found.row("kernels", "local_2d backward 64x64 causal D 128").get("milliseconds", {})
    return quotient(row.get("grad_kv_kernel"), row.get("grad_q_kernel"))


RELATIVE_BACKWARD = "relative", "backward", RELATIVE, 128
LATE, PLAIN = {"late": True, "described": True}, {"late": False, "described": False}
NARROW, CARRIED, WHOLE = {"block_q": 64, "block_k": 32}, {"whole": False}, {"whole": True}
PREDICTIONS = (
    Prediction(
        "relative causal forward, 8k, table 1024, dim 128: 400 to 500 TFLOP/s",
        (lambda found: found.rate("relative", "forward", RELATIVE, 128),),
        "{:.0f} TFLOP/s",
    ),
    Prediction(
        "there, 128x64 tiles are 1.2 to 1.6 times as fast as 64x32",
        (tiles("relative", 128, "forward", {"block_q": 128}, NARROW),),
    ),
    Prediction(
        "there, carried (3 products a tile) is at least as fast as whole (5)",
        (tiles("relative", 128, "forward", CARRIED, WHOLE),),
    ),
    Prediction(
        "relative causal backward there: 65 to 80 % of plain causal backward",
        (lambda found: found.of_rate(RELATIVE_BACKWARD, ("causal", "backward", "L 8192", 128)),),
        "{:.0%}",
    ),
    Prediction("grad_table takes less than 5 % of its time", (share_of_grad_table,), "{:.1%}"),
    Prediction(
        "grad_q with a table, dim 128: 64x32 carried (two programs a multiprocessor) is at least"
        " 1.3 times as fast as whole (one)",
        (tiles("relative", 128, "grad_q", NARROW | CARRIED, NARROW | WHOLE),),
    ),
    Prediction(
        "plain causal forward, 8k: late and described at least 1.1 times as fast as neither,"
        " dim 64 and 128",
        tuple(tiles("causal", dim, "forward", LATE, PLAIN) for dim in (64, 128)),
    ),
    Prediction(
        "there, dim 64: 64x128 with 4 warps is 1.1 times as fast as 128x128 with 8",
        (tiles("causal", 64, "forward", {"block_q": 64}, {"block_q": 128}),),
    ),
    Prediction(
        "plain causal grad_q, dim 64: described (two programs a multiprocessor) at least 1.15 times"
        " as fast as not",
        (tiles("causal", 64, "grad_q", {"described": True}, {"described": False}),),
    ),
    Prediction(
        "plain causal grad_kv, dim 128: 64x128 at least 1.2 times as fast as 32x128",
        (tiles("causal", 128, "grad_kv", {"block_q": 64, "block_k": 128}, {"block_q": 32}),),
    ),
    Prediction(
        "local 2-D causal backward: grad_kv takes 1.5 to 2.5 times as long as grad_q",
        (canvas_kernels,),
    ),
)


# --- Text ---


def line_of(part: str, row: Row) -> str:
    """A row that has just been made, in a line; nothing of what is only good to have passed."""
    name = f"{part:10} {row['name']}"
    if reason := row.get("failed") or row.get("skipped") or row.get("left_out"):
        return f"{name}: {reason}"[:300]
    if row.get("wrong"):
        return f"{name}: WRONG {row['wrong']} {row.get('errors', row.get('changed'))}"[:300]
    if part == "ceilings":
        copy, product = row["gigabytes_per_second"], row["tflops"]
        return f"{name}: {copy:.0f} GB/s, {product:.0f} TFLOP/s; {row['clocks']}"
    if part == "tiles":
        return f"{name}: {row['milliseconds']:.3f} ms"
    if part == "kernels":
        return f"{name}: {', '.join(f'{k} {ms:.3f}' for k, ms in row['milliseconds'].items())} ms"
    if part != "results":
        return ""
    providers = row["providers"]
    told = [
        f"{n} {x['milliseconds']:.3f} ({x['host_microseconds']:.0f})" for n, x in providers.items()
        if x["milliseconds"]
    ]  # fmt: skip
    lost = [f"{n}: {x['skipped']}" for n, x in providers.items() if x["skipped"]]
    ours, ratio = providers[OURS], over_peers(row)
    rate = f"{ours['tflops']:.0f} TFLOP/s" if ours["tflops"] else "-"
    if ours["gigabytes_per_second"]:
        rate = f"{ours['gigabytes_per_second']:.0f} GB/s"
    compared = f", {ratio:.2f}x" if ratio else ""
    return "; ".join([f"{name}: {rate}{compared}; {', '.join(told)} ms", *lost])[:400]


def rates(row: Row) -> str:
    """A shape in the summary."""
    providers = row.get("providers", {})
    ours = providers.get(OURS, {})
    if not ours.get("milliseconds"):
        return f"  {row['name']}: -"
    peers = [
        f", {name} {ours['milliseconds'] / x['milliseconds']:.2f}"
        for name, x in providers.items() if name != OURS and x["milliseconds"]
    ]  # fmt: skip
    return f"  {row['name']}: {ours['tflops']:.0f}{''.join(peers)}"


def summary(data: Row) -> str:
    """All that matters of a file, short."""
    found, environment = Found(data), data["environment"]
    lines = [
        "",
        ", ".join(f"{x} {environment[x]}" for x in ("device", "torch", "triton", "commit")),
    ]
    lines += [line_of("ceilings", row) for row in data["ceilings"]]
    for part in ("checks", "steadiness"):
        rows = data[part]
        bad = [x for x in rows if x.get("wrong") or x.get("failed")]
        lines.append(f"{part}: {len(rows)}, {len(bad)} failed")
        lines += [line_of(part, row)[:150] for row in bad[:8]]
    lines.append("bars, promised for D 128:")
    for text, figure, least in bars(found):
        verdict = "no figure" if figure is None else "reached" if figure >= least else "NOT REACHED"
        value = "" if figure is None else f"{figure:.3g}, "
        lines.append(f"  {text}: {value}bar {least:g}: {verdict}")
    lines += ["TFLOP/s; peers' speed over ours:", *map(rates, data["results"])]
    lines += ["", "| prediction | outcome |", "|---|---|"]
    lines += [f"| {each.text} | {each.outcome(found)} |" for each in PREDICTIONS]
    lost = [
        f"{part} {row['name']}: {row.get('failed') or row.get('skipped')}"[:100]
        for part in data if part in ("compiled", "results", "kernels", "tiles")
        for row in data[part] if row.keys() & {"failed", "skipped"}
    ]  # fmt: skip
    lines += ["", f"{len(lost)} rows without figures", *lost, *data["errors"]]
    text = "\n".join(lines)
    return text if len(text) < LIMIT else text[: LIMIT - 20] + "\n... (shortened)"


def status(data: Row) -> int:
    """1 if anything of ours is wrong or failed."""
    rows = [row for part in data.values() if isinstance(part, list) for row in part]
    rows = [row for row in rows if isinstance(row, dict)]
    wrong = any(row.get("wrong") or row.get("failed") for row in rows)
    lost = any(x["providers"][OURS]["skipped"] for x in data["results"] if "providers" in x)
    return int(wrong or lost or bool(data["errors"]))


def record(data: Row, folder: Path = RESULTS) -> Path:
    """Write what is committed: everything but what tells of no result."""
    environment = data["environment"]
    if environment["commit"] == "unknown":
        raise ValueError(
            "environment.commit must name a commit, got unknown: measure with --commit"
        )
    name = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    path = folder / f"{name}.json"
    kept = {part: rows for part, rows in data.items() if part != "compiled"}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Print a file's summary, and write the form that is committed where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_summary", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--record", action="store_true", help="write benchmarks/results/DEVICE.json"
    )
    chosen = parser.parse_args(arguments)
    data = json.loads(chosen.file.read_text())
    print(summary(data))
    if chosen.record:
        print(f"wrote {record(data)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
