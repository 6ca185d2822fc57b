"""Recordings of other formats than today's, as rows of today's."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .results import OURS

NOT_PEERS = (OURS, "our causal")  # format 1 does not tell
Rows = list[dict]


def numel(*sizes: list[int]) -> int:
    """Elements of tensors of these sizes."""
    return sum(math.prod(size) for size in sizes)


def from_format_1(rows: Rows) -> Iterator[dict]:
    """What format 1 left to the code: titles, who is a peer, the size of the results."""
    for row in rows:
        sizes, input_bytes = row["sizes"], row["input_bytes"]
        out_bytes = input_bytes * numel(sizes["q"]) // numel(*sizes.values())
        kept = {name: row[name] for name in row if name not in ("best_peer", "speedup")}
        yield {
            **kept,
            "title": row["op"],
            "reads_only": row["op"] == "decode",
            "peers": [name for name in row["entries"] if name not in NOT_PEERS],
            "result_bytes": out_bytes + input_bytes * (row["direction"] == "backward"),
        }


def from_gpu(rows: Rows) -> Iterator[dict]:
    """benchmarks.gpu records medians in bfloat16, and memory with the results."""
    for row in rows:
        providers = row.get("providers", {})
        if not providers.get(OURS, {}).get("milliseconds"):
            continue  # out of time, or failed
        ours, (batch, heads, k_heads, q_len, k_len) = providers[OURS], row["shape"]
        key_size = [batch, k_heads, k_len, row["dim"]]
        sizes = {"q": [batch, heads, q_len, row["dim"]], "k": key_size, "v": key_size}
        entries = {
            name: {
                "seconds": [found["milliseconds"] / 1e3] if found["milliseconds"] else [],
                "skipped": found["skipped"],
                "errors": found["error"],
                "extra_bytes": found["peak_bytes"],
            }
            for name, found in providers.items()
        }
        yield {
            "op": row["group"],
            "title": row["group"],
            "shape": row["work"],
            "sizes": sizes,
            "source": "",
            "dtype": "bfloat16",
            "direction": "backward alone" if row["backward"] else "forward",
            "threads": 0,
            "visible_pairs": 0,
            "flops": ours["tflops"] * ours["milliseconds"] * 1e9,
            "input_bytes": 2 * numel(*sizes.values()),
            "result_bytes": 0,
            "reads_only": bool(ours["gigabytes_per_second"]),
            "peers": [name for name in providers if name != OURS],
            "entries": entries,
            "limits": [],
        }
