"""Relative attention: a learned vector for every distance, under every 1-D geometry."""

from __future__ import annotations

from typing import Any, ClassVar

from common import Inputs, Table, Variant
from operation_checks import OneDimensional

from attn_kernels import Causal, Full, Local1d, Relative, attention, relative_attention
from attn_kernels.core.geometry import Geometry


def variant(name: str, geometry: Geometry, rows: int, **settings: Any) -> Variant:
    table = Table(rows, **settings)

    def call(x: Inputs, **options: Any) -> Any:
        if isinstance(geometry, Local1d):
            score = Relative(x.rel_k, x.rel_v, x.q_rel, table.beyond, table.rel_scale)
            return attention(x.q, x.k, x.v, geometry, score, **options)
        window = geometry.window if geometry.causal else None
        return relative_attention(
            x.q, x.k, x.v, x.rel_k,
            rel_v=x.rel_v, q_rel=x.q_rel, causal=geometry.causal, window=window,
            beyond=table.beyond, rel_scale=table.rel_scale, **options,
        )  # fmt: skip

    return Variant(name, call, lambda _: geometry, table)


class TestRelative(OneDimensional):
    variants: ClassVar = [
        # causal, every distance has a row (Music Transformer), or the table ends before
        variant("causal-long", Causal(), 400, per_head=True),
        variant("causal-clip", Causal(), 9),
        variant("causal-zero", Causal(), 9, beyond="zero"),
        variant("causal-zero-heads", Causal(), 70, per_head=True, beyond="zero"),
        # bidirectional with a value term (Shaw)
        variant("both-clip-values", Full(), 31, per_head=True, rel_v="per_head"),
        variant("both-zero-values", Full(), 31, rel_v="shared", beyond="zero"),
        variant("both-long", Full(), 701),
        # the position term has a query and a scale of its own (Transformer-XL, Conformer)
        variant("causal-q_rel", Causal(), 130, q_rel=True, rel_scale=0.7),
        variant("both-q_rel", Full(), 131, per_head=True, q_rel=True, rel_scale=-0.4),
        variant(
            "window-everything", Causal(40), 33,
            per_head=True, rel_v="shared", q_rel=True, beyond="zero",
        ),
        variant("window-long", Causal(64), 100, rel_v="per_head"),
        # one row: a constant for all distances, or for the diagonal alone
        variant("causal-one-row", Causal(), 1, rel_v="shared"),
        variant("both-one-row", Full(), 1, beyond="zero", rel_v="shared"),
        variant("local-causal", Local1d(16, 16), 32, per_head=True),
        variant("local-causal-short", Local1d(50, 20), 12, beyond="zero", rel_v="shared"),
        variant("local-both", Local1d(16, 8, 8, causal=False), 47, rel_v="shared"),
        variant(
            "local-both-short", Local1d(60, 30, 10, causal=False), 21,
            per_head=True, q_rel=True, beyond="zero",
        ),
    ]  # fmt: skip
    few: ClassVar = [variants[0], variants[4], variants[9]]
