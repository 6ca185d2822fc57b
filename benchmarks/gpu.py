"""The Triton kernels on one GPU: values first, then times beside cuDNN, FlashAttention and
FlexAttention.

python -m benchmarks.gpu --out DIR [--budget 560] [--only causal,relative] [--check]

Needs torch, triton and this checkout. Forward, out and every gradient are compared with the float64
reference before anything is timed, and each peer with ours: a wrong kernel has no speed. Times are
medians over rounds in which the providers take turns, with the L2 cache flushed before every call.
What the budget of seconds leaves no room for is listed as skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attn_kernels import Causal, Full, Local1d, Local2d, Relative, __version__, attention
from attn_kernels.core.geometry import Geometry

DEVICE = "cuda"
ROUNDS = 3
MILLISECONDS = 60  # of repetitions in each round
DENSE_BYTES = 24 << 30  # an eager peer may allocate so much
# Largest and mean error, relative to the largest and mean value.
TOLERANCE = {
    torch.bfloat16: (2e-2, 1.2e-2),
    torch.float16: (4e-3, 2e-3),
    torch.float32: (2e-5, 5e-6),
}

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Work:
    """One shape of one operation."""

    group: str
    label: str
    geometry: Geometry
    batch: int
    heads: int
    q_len: int
    k_len: int
    dim: int
    k_heads: int
    rows: int = 0  # of the relative table, one per head
    backward: bool = False

    def inputs(self, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """q, k, v and the table: the same values every time."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        sizes = [
            (self.batch, self.heads, self.q_len, self.dim),
            *[(self.batch, self.k_heads, self.k_len, self.dim)] * 2,
        ]
        if self.rows:
            sizes.append((self.heads, self.rows, self.dim))
        draw = lambda size: torch.randn(size, generator=generator, device=DEVICE).to(dtype)  # noqa: E731
        return [draw(size).requires_grad_(self.backward) for size in sizes]

    def flops(self) -> float:
        """q k^T and p v over visible pairs, and 2.5 times that backward; nothing else counts."""
        pairs = visible_pairs(self.geometry, self.q_len, self.k_len)
        return 4 * self.dim * self.batch * self.heads * pairs * (2.5 if self.backward else 1)


@cache
def visible_pairs(geometry: Geometry, q_len: int, k_len: int) -> int:
    return geometry.visible_pairs(q_len, k_len, k_len - q_len)


@dataclass
class Measured:
    """One provider on one shape."""

    milliseconds: float | None = None
    tflops: float | None = None
    gigabytes_per_second: float | None = None
    peak_bytes: int | None = None
    error: tuple[float, float] | None = None
    skipped: str = ""


@dataclass
class Report:
    """All results, as the JSON file holds them."""

    environment: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


# --- Providers ---


def ours(work: Work) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        score = Relative(table[0]) if table else None
        return attention(q, k, v, work.geometry, score, backend="triton")

    return call


def sdpa(backend: SDPBackend) -> Callable[[Work], Call]:
    """torch's own kernels, where the geometry is one of theirs."""

    def prepare(work: Work) -> Call:
        full = work.geometry == Full() or (work.geometry == Causal() and work.q_len == 1)
        if work.rows or not (full or (work.geometry == Causal() and work.q_len == work.k_len)):
            raise NotImplementedError("not a mask that it knows")

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                grouped = work.heads != work.k_heads
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=not full, enable_gqa=grouped
                )

        return call

    return prepare


def flex(work: Work) -> Call:
    """FlexAttention, compiled. Canvases are reordered block by block first: its masks need that."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    offset, geometry = work.k_len - work.q_len, work.geometry
    order = inverse = None
    if isinstance(geometry, Local2d):
        order = torch.tensor(sorted(range(work.q_len), key=geometry.order), device=DEVICE)
        inverse = order.argsort()

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        if order is None:
            return geometry.visible(i + offset, j)
        return geometry.visible(order[i], order[j])

    mask = None
    if geometry != Full():
        mask = create_block_mask(seen, None, None, work.q_len, work.k_len, device=DEVICE)
    options = {"block_mask": mask, "enable_gqa": work.heads != work.k_heads}
    centre = work.rows - 1 if geometry.causal else (work.rows - 1) // 2

    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        if order is not None:
            out = compiled(*(x[:, :, order] for x in (q, k, v)), **options)
            return out[:, :, inverse]
        if not table:
            return compiled(q, k, v, **options)
        by_row = q @ table[0].mT * work.dim**-0.5  # [B, H, L, rows]

        def add(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
            row = (j - i - offset + centre).clamp(0, work.rows - 1)
            return score + by_row[b, h, i, row]

        return compiled(q, k, v, score_mod=add, **options)

    return call


def eager(work: Work) -> Call:
    """The best composition without a fused kernel: a dense mask or bias, or gathered blocks."""
    geometry = work.geometry
    if isinstance(geometry, Local2d):
        return eager_blocks(work, geometry)
    pairs = work.q_len * work.k_len
    if pairs * work.batch * work.heads * (8 if work.backward else 4) > DENSE_BYTES:
        raise NotImplementedError("its bias does not fit")
    offset = work.k_len - work.q_len
    q_pos = torch.arange(work.q_len, device=DEVICE).view(-1, 1) + offset
    k_pos = torch.arange(work.k_len, device=DEVICE)
    visible = geometry.visible(q_pos, k_pos)
    centre = work.rows - 1 if geometry.causal else (work.rows - 1) // 2
    row = (k_pos - q_pos + centre).clamp(0, max(work.rows - 1, 0))

    def call(q: Tensor, k: Tensor, v: Tensor, *table: Tensor) -> Tensor:
        bias = visible
        if table:
            by_row = q @ table[0].mT * work.dim**-0.5
            bias = by_row.gather(-1, row.expand(*by_row.shape[:2], -1, -1))
            bias = bias.masked_fill(~visible, -math.inf)
        grouped = work.heads != work.k_heads
        return F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=grouped)

    return call


def eager_blocks(work: Work, geometry: Local2d) -> Call:
    """Gather the keys of every block, then attend with the blocks as a batch."""
    rows, cols = geometry.grid
    (bh, bw), (hh, hw) = geometry.block, geometry.halo
    if rows % bh or cols % bw:
        raise NotImplementedError("blocks cut at the edge")
    tops, lefts = range(0, rows, bh), range(0, cols, bw)
    grid = torch.arange(rows * cols, device=DEVICE).view(rows, cols)
    queries = torch.stack([grid[t : t + bh, x : x + bw].flatten() for t in tops for x in lefts])
    padded = F.pad(grid, (hw, hw, hh, hh), value=-1)
    keys = torch.stack(
        [padded[t : t + bh + 2 * hh, x : x + bw + 2 * hw].flatten() for t in tops for x in lefts]
    )
    visible = geometry.visible(queries.unsqueeze(2), keys.unsqueeze(1)) & (keys >= 0).unsqueeze(1)
    keys, inverse = keys.clamp(min=0), queries.flatten().argsort()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [x[:, :, at].flatten(0, 1) for x, at in ((q, queries), (k, keys), (v, keys))]
        out = F.scaled_dot_product_attention(*parts, visible)  # [B * H, blocks, queries, D]
        return out.flatten(1, 2)[:, inverse].unflatten(0, q.shape[:2])

    return call


PROVIDERS: dict[str, Callable[[Work], Call]] = {
    "attn_kernels": ours,
    "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "flex": flex,
    "eager": eager,
}


# --- Shapes ---


def works() -> Iterator[Work]:
    """What is timed, the most telling first; tokens times hidden size stay the same, as is
    usual."""
    for backward in (False, True):
        way = "backward" if backward else "forward"
        for dim in (128, 64):
            for length in (16384, 8192, 4096, 2048, 1024):
                heads = 2048 // dim
                size = (16384 // length, heads, length, length, dim, heads)
                yield Work("causal", f"{way} L {length} D {dim}", Causal(), *size, 0, backward)
        for geometry, name in ((Causal(), "causal"), (Full(), "both")):
            for length in (2048, 8192):
                for rows in (length if geometry.causal else 2 * length - 1, 1024):
                    rows = rows if geometry.causal else rows | 1
                    heads = 16
                    size = (16384 // length, heads, length, length, 128, heads, rows)
                    label = f"{name} {way} L {length} table {rows}"
                    yield Work("relative", label, geometry, *size, backward)
        for side, block, halo in ((64, 8, 4), (128, 8, 4), (256, 16, 8)):
            length = side * side
            geometry = Local2d((side, side), (block, block), (halo, halo))
            size = (max(1, 65536 // length), 16, length, length, 64, 16)
            yield Work("local_2d", f"{way} {side}x{side}", geometry, *size, 0, backward)
            causal = Local2d((side, side), (block, block), (halo, halo), True)
            yield Work("local_2d", f"{way} {side}x{side} causal", causal, *size, 0, backward)
    for batch, length in ((1, 8192), (1, 131072), (16, 8192), (64, 4096)):
        for k_heads in (32, 8):
            label = f"B {batch} cache {length} heads 32/{k_heads}"
            yield Work("decode", label, Causal(), batch, 32, 1, length, 128, k_heads)


CHECKS = [
    *(
        Work("check", name, geometry, 2, 4, q_len, k_len, dim, k_heads, rows, True)
        for dim in (64, 128, 80)
        for name, geometry, q_len, k_len, k_heads, rows in (
            ("full", Full(), 333, 333, 4, 0),
            ("causal", Causal(), 500, 500, 4, 0),
            ("causal, grouped, cross", Causal(), 100, 700, 2, 0),
            ("window", Causal(150), 500, 500, 4, 0),
            ("local 1-D", Local1d(64, 64), 500, 500, 4, 0),
            ("local 2-D", Local2d((20, 25), (8, 8), (4, 4)), 500, 500, 4, 0),
            ("local 2-D causal", Local2d((20, 25), (8, 4), (3, 5), True), 500, 500, 4, 0),
            ("relative, table short", Causal(), 500, 500, 4, 130),
            ("relative, table long", Causal(), 500, 500, 2, 700),
            ("relative, both ways", Full(), 500, 500, 4, 257),
            ("decode", Causal(), 1, 3000, 2, 0),
            ("decode, relative", Causal(), 3, 3000, 4, 200),
        )
    )
]


# --- Checking and timing ---


def step_of(call: Call, inputs: list[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """The timed step: forward without gradients, or backward alone."""
    if not backward:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [call(*inputs)]

        return forward
    out = call(*inputs)
    generator = torch.Generator(DEVICE).manual_seed(1)
    grad_out = torch.randn(out.shape, generator=generator, device=DEVICE).to(out.dtype)
    return lambda: [
        out.detach(), *torch.autograd.grad(out, inputs, grad_out, retain_graph=True)
    ]  # fmt: skip


def errors(results: list[Tensor], truth: list[Tensor]) -> tuple[float, float]:
    """The worst of the largest and of the mean errors, relative to the largest and mean value."""
    worst = [0.0, 0.0]
    for x, y in zip(results, truth, strict=True):
        error, y = (x.double() - y.double()).abs(), y.double().abs()
        if not error.isfinite().all():
            return math.inf, math.inf
        found = (error.max() / y.max().clamp_min(1e-9), error.mean() / y.mean().clamp_min(1e-9))
        worst = [max(a, float(b)) for a, b in zip(worst, found, strict=True)]
    return worst[0], worst[1]


def check(report: Report) -> bool:
    """Values and all gradients against the float64 reference, in three dtypes."""
    fine = True
    for work in CHECKS:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            inputs = work.inputs(dtype)
            wide = [x.detach().double().requires_grad_() for x in inputs]
            score = Relative(wide[3]) if work.rows else None
            out = attention(*wide[:3], work.geometry, score, backend="reference")
            generator = torch.Generator(DEVICE).manual_seed(1)
            grad = torch.randn(out.shape, generator=generator, device=DEVICE).to(dtype)
            truth = [out.detach(), *torch.autograd.grad(out, wide, grad.double())]
            row = {"name": work.label, "dim": work.dim, "dtype": str(dtype)}
            try:
                found = errors(step_of(ours(work), inputs, True)(), truth)
                passed = all(a <= b for a, b in zip(found, TOLERANCE[dtype], strict=True))
                row |= {"errors": found, "passed": passed}
            except Exception as error:  # what a compiler or driver raises has no common type
                row |= {"passed": False, "raised": f"{type(error).__name__}: {error}"[:500]}
            report.checks.append(row)
            fine &= row["passed"]
            if not row["passed"]:
                print("WRONG", row, flush=True)
    print(f"{len(report.checks)} checks against float64: {'passed' if fine else 'FAILED'}")
    return fine


def measure(work: Work, deadline: float) -> dict[str, Measured]:
    """Every provider on one shape, in turns."""
    found = {name: Measured() for name in PROVIDERS}
    steps: dict[str, Callable[[], list[Tensor]]] = {}
    expected = None
    for name, provider in PROVIDERS.items():
        if time.monotonic() > deadline:
            found[name].skipped = "out of time"
            continue
        try:
            step = step_of(provider(work), work.inputs(), work.backward)
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            values = step()
            torch.cuda.synchronize()
            found[name].peak_bytes = torch.cuda.max_memory_allocated() - before
        except Exception as error:  # peers fail in many ways; the report says how
            found[name].skipped = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
            continue
        if expected is None:
            expected = values
        # two bfloat16 results differ by both their roundings, and a peer may round its bias
        found[name].error = errors(values, expected)
        if found[name].error[1] > 5e-2:
            found[name].skipped = "other values"
            continue
        steps[name] = step
        del values
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS):
        for name in list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]:
            ms = triton.testing.do_bench(
                steps[name], warmup=MILLISECONDS // 4, rep=MILLISECONDS, return_mode="median"
            )
            times[name].append(ms)
    for name, seconds in times.items():
        ms = median(seconds)
        found[name].milliseconds = ms
        found[name].tflops = work.flops() / ms / 1e9
        if work.group == "decode":
            cache_bytes = 4 * work.batch * work.k_heads * work.k_len * work.dim
            found[name].gigabytes_per_second = cache_bytes / ms / 1e6
    return found


def environment() -> dict[str, Any]:
    """The device, the versions and the commit that results belong to."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "attn_kernels": __version__,
        "commit": commit,
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def line_of(work: Work, found: dict[str, Measured]) -> str:
    """One line per shape: our rate, the best peer's time over ours, everybody's milliseconds."""
    parts = [
        f"{name} {x.milliseconds:.3f}" if x.milliseconds else f"{name} -"
        for name, x in found.items()
    ]
    mine = found["attn_kernels"]
    if mine.milliseconds is None:
        return f"{work.group:9} {work.label:36} {' '.join(parts)}: {mine.skipped}"
    peers = [x.milliseconds for n, x in found.items() if n != "attn_kernels" and x.milliseconds]
    ratio = f"{min(peers) / mine.milliseconds:.2f}x" if peers else "-"
    rate = f"{mine.gigabytes_per_second:.0f} GB/s" if mine.gigabytes_per_second else ""
    rate = rate or f"{mine.tflops:.0f} TFLOP/s"
    return f"{work.group:9} {work.label:36} {rate:>12} {ratio:>7}  {' '.join(parts)} ms"


def main(arguments: list[str] | None = None) -> int:
    """Check, then measure; 1 if a value is wrong, and then nothing is timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="write a JSON file into this folder")
    parser.add_argument("--budget", type=float, default=560, help="seconds for everything")
    parser.add_argument("--only", default="", help="causal, relative, local_2d, decode")
    parser.add_argument("--check", action="store_true", help="compare values, time nothing")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing to measure")
    deadline = time.monotonic() + chosen.budget
    report = Report(environment())
    print(json.dumps(report.environment, indent=1), flush=True)
    groups = chosen.only.split(",") if chosen.only else ["causal", "relative", "local_2d", "decode"]
    fine = check(report)
    if fine and not chosen.check:
        for work in works():
            if work.group not in groups:
                continue
            if time.monotonic() > deadline:
                print(f"out of time before {work.group} {work.label}")
                report.results.append({"work": work.label, "skipped": "out of time"})
                continue
            found = measure(work, deadline)
            torch.cuda.empty_cache()
            print(line_of(work, found), flush=True)
            report.results.append(
                {
                    "group": work.group,
                    "work": work.label,
                    "shape": [work.batch, work.heads, work.k_heads, work.q_len, work.k_len],
                    "dim": work.dim,
                    "backward": work.backward,
                    "providers": {name: asdict(x) for name, x in found.items()},
                }
            )
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        device = report.environment["device"].lower().replace(" ", "-")
        path = chosen.out / f"gpu-{device}.json"
        path.write_text(json.dumps(asdict(report), indent=1))
        print(f"written to {path}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
