"""The memory table of Music Transformer (Huang et al. 2018, table 1), by measurement.

Relative self-attention adds q_i . E[L-1-(i-j)] to the logits. Three ways to do it, for L positions,
H heads and D dimensions in all heads together, in float32:

- gathered (Shaw et al. 2018): a row of E for every pair of positions, L * L * D numbers, and the
  relative logits, H * L * L;
- skewed (Music Transformer): q E^T padded by a column and reshaped, H * L * L, and its unpadded
  original;
- fused (this library): neither.

The table E itself, L * D numbers, is needed by all three and counted by none.

What is measured is how far a call lifts the peak of the process's resident memory over its inputs
and results, in a process of its own where freed memory goes back at once. `term` is the relative
logits alone, `forward` the whole attention, `training` also the gradients of q, k, v and E. For the
fused kernel there are no relative logits: its term is what `forward` takes more than causal
attention does.

    python -m examples.relative_memory [--out FILE.json] [--lengths 650,2048,3500] [--heads 1,8]
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import attn_kernels
from attn_kernels import causal_attention, relative_attention
from benchmarks.memory import resident, return_freed_memory

from .checkpoint import write_atomically
from .options import several
from .quality import main, processor

HEAD_DIM = 64
FLOAT = 4  # bytes
MB = 1e6  # the paper's
SHARE = 0.6  # of the free memory that a measurement may take
WAYS = ("gathered", "skewed", "fused")
WHATS = ("term", "forward", "training")


@cache
def table_rows(length: int) -> Tensor:
    """The table's row for every pair; models keep it, so it is not measured."""
    position = torch.arange(length)
    return (length - 1 - (position[:, None] - position[None, :])).clamp(max=length - 1)


def gathered_term(q: Tensor, table: Tensor) -> Tensor:
    """Relative logits from one row of the table per pair; keys behind the query get any row."""
    pairs = table[:, table_rows(q.shape[2])]  # [heads, length, length, dim]
    return (pairs @ q[0].unsqueeze(-1)).squeeze(-1).unsqueeze(0)


def skewed_term(q: Tensor, table: Tensor) -> Tensor:
    """Relative logits by the paper's skewing: pad a column, reshape, drop a row."""
    by_row = q @ table.mT
    batch, heads, length, rows = by_row.shape
    padded = F.pad(by_row, (1, 0))
    del by_row
    return padded.view(batch, heads, rows + 1, length)[:, :, 1:]


def composed(term: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Relative attention around a term, in plain torch."""

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        logits = (q @ k.mT + term(q, table)) * q.shape[-1] ** -0.5
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        return logits.masked_fill_(later, -torch.inf).softmax(-1) @ v

    return attend


TERMS = {"gathered": gathered_term, "skewed": skewed_term}
ATTENTIONS = {
    "gathered": composed(gathered_term),
    "skewed": composed(skewed_term),
    "fused": relative_attention,
    "causal": lambda q, k, v, table: causal_attention(q, k, v),
}


def formula(way: str, length: int, heads: int) -> int:
    """Bytes of the relative term by the paper's count (table 1 without the table E)."""
    logits = heads * length * length * FLOAT
    rows = heads * length * length * HEAD_DIM * FLOAT
    return {"gathered": rows + logits, "skewed": logits, "fused": 0}[way]


def expected(way: str, what: str, length: int, heads: int) -> int:
    """About how much a measurement will take, so that none is begun that cannot end."""
    logits = heads * length * length * FLOAT
    rows = formula("gathered", length, heads) - logits if way == "gathered" else 0
    if way in ("fused", "causal"):
        return 0
    return rows + 2 * logits if what == "term" else (rows + 4 * logits) * (1 + (what == "training"))


def step(way: str, what: str, inputs: list[Tensor]) -> list[Tensor]:
    """The call that is measured; its results stay alive."""
    if what == "term":
        with torch.no_grad():
            return [TERMS[way](inputs[0], inputs[3])]
    with torch.set_grad_enabled(what == "training"):
        out = ATTENTIONS[way](*inputs)
    if what == "forward":
        return [out]
    wanted = [x for x in inputs if way != "causal" or x is not inputs[3]]
    return [out.detach(), *torch.autograd.grad(out.sum(), wanted)]


def make_inputs(length: int, heads: int) -> list[Tensor]:
    """q, k, v [1, heads, length, dim] and E [heads, length, dim]."""
    shapes = [(1, heads, length, HEAD_DIM)] * 3 + [(heads, length, HEAD_DIM)]
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def lifted(way: str, what: str, length: int, heads: int) -> int:
    """Bytes by which the call lifts the peak over inputs and results. Runs in the other process."""
    torch.set_num_threads(1)
    step(way, what, make_inputs(64, heads))  # libraries and threads get what they keep
    inputs = make_inputs(length, heads)
    if way == "gathered":
        table_rows(length)
    gc.collect()
    with ThreadPoolExecutor(1) as pool:  # a new thread keeps no scratch memory of earlier calls
        pool.submit(int).result()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = resident("VmRSS")
        results = pool.submit(step, way, what, inputs).result()
        peak = resident("VmHWM")
    kept = 0 if what == "term" else sum(x.untyped_storage().nbytes() for x in results)
    return max(0, peak - before - kept)


def free_memory() -> int:
    """Bytes that a new process can have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise OSError("no MemAvailable")


def measure(way: str, what: str, length: int, heads: int) -> int | None:
    """lifted() in a new process; None where there is not enough memory to try."""
    if expected(way, what, length, heads) > SHARE * free_memory():
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=return_freed_memory) as pool:
        return pool.submit(lifted, way, what, length, heads).result()


def row(length: int, heads: int) -> dict:
    """Every way and what at one size, in bytes."""
    found: dict = {"length": length, "heads": heads, "table": heads * length * HEAD_DIM * FLOAT}
    for way in WAYS:
        found[way] = {"formula": formula(way, length, heads)}
        for what in WHATS:
            print(f"  {way} {what} L={length} H={heads}", file=sys.stderr, flush=True)
            if way == "fused" and what == "term":
                continue
            found[way][what] = measure(way, what, length, heads)
    causal = measure("causal", "forward", length, heads)
    found["fused"]["term"] = max(0, found["fused"]["forward"] - causal)
    return found


def table(rows: list[dict]) -> str:
    """The figures in MB for a reader."""
    lines = []
    for heads in sorted({x["heads"] for x in rows}):
        lines.append(f"\n{heads} head{'s' * (heads > 1)} of {HEAD_DIM}, float32, MB beside inputs")
        titles = [f"{way} {what}" for way in WAYS for what in ("formula", *WHATS)]
        lines.append("| L | table E | " + " | ".join(titles) + " |")
        lines.append("|---" * (2 + len(titles)) + "|")
        for found in (x for x in rows if x["heads"] == heads):
            cells = [found[way][what] for way in WAYS for what in ("formula", *WHATS)]
            texts = ["too large" if x is None else f"{x / MB:.4g}" for x in cells]
            lines.append(f"| {found['length']} | {found['table'] / MB:.2g} | {' | '.join(texts)} |")
    return "\n".join(lines)


def run() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m examples.relative_memory")
    add = parser.add_argument
    add("--lengths", type=several, default="650,2048,3500", help="default: the paper's")
    add("--heads", type=several, default="1,8", help="default: one head, and the paper's layer")
    add("--out", type=Path, help="also write the figures here, as JSON")
    found = parser.parse_args()
    rows = [row(length, heads) for heads in found.heads for length in found.lengths]
    print(table(rows))
    if found.out is not None:
        record = {
            "machine": processor(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "attn_kernels": attn_kernels.__version__,
            "unit": "bytes",
            "rows": rows,
        }
        text = json.dumps(record, indent=1) + "\n"
        write_atomically(found.out, lambda part: part.write_text(text))


if __name__ == "__main__":
    main(run)
