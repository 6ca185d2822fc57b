"""Self-attention that knows how far apart query and key are, as three papers have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_kernels import Causal, Full, Relative
from attn_kernels.score.tables import BEYOND

from .attention import Attention
from .cache import KeyValueCache
from .checks import check_choice, check_count
from .positions import FORMS, sinusoids


class RelativeAttention(Attention):
    """Music Transformer's relative self-attention (Huang et al. 2019, arXiv 1809.04281).

        s_ij = (q_i . k_j + q_i . E[j - i]) / sqrt(D_h)

    E has one learned row per distance, for each head or for all, drawn with standard deviation
    D_h ** -0.5. Nothing is skewed: the kernels read E as a band.

    Args:
        distances: how many distances have a row, 0 .. distances - 1 (to both sides unless causal).
        beyond: farther keys use the last row ("clip") or add nothing ("zero": tensor2tensor and
            Magenta's released models).
        share_heads: one table for all heads.
        geometry: default Causal(); Local1d(block, block) with distances = 2 * block is the paper's
            relative local attention.
        options: the other keywords of `Attention`.
    Example:
        >>> RelativeAttention(64, 8, distances=100)(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        distances: int,
        beyond: str = "clip",
        share_heads: bool = False,
        geometry: Any = Causal(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, geometry=geometry, **options)
        check_count("distances", distances)
        rows = distances if geometry.causal else 2 * distances - 1
        check_choice("beyond", beyond, BEYOND)
        self.beyond = beyond
        tables = 1 if share_heads else heads
        self.rel_k = nn.Parameter(self.query.weight.new_empty(tables, rows, self.head_dim))
        self.init_table()

    def init_table(self) -> None:
        """Normal with standard deviation D_h ** -0.5."""
        nn.init.normal_(self.rel_k, std=self.head_dim**-0.5)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.init_table()

    def score(self, q: Tensor, k_len: int) -> tuple[Tensor, Relative]:
        return q, Relative(self.rel_k, beyond=self.beyond)


class ShawAttention(Attention):
    """Relative position representations of Shaw et al. 2018 (arXiv 1803.02155).

        s_ij  = q_i . (k_j + a^K_ij) / sqrt(D_h)
        out_i = sum_j softmax_j(s_ij) (v_j + a^V_ij)

    a_ij is the row clip(j - i, -max_distance, max_distance) of a learned table that all heads of
    the layer share. Under a causal geometry the rows of keys to the right do not exist.

    Args:
        max_distance: the paper's k, beyond which distances are clipped.
        values: whether a^V exists; the paper found the key term enough.
        geometry: default Full().
        options: the other keywords of `Attention`.
    Example:
        >>> ShawAttention(64, 8, max_distance=16)(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        max_distance: int = 16,
        values: bool = True,
        geometry: Any = Full(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, geometry=geometry, **options)
        check_count("max_distance", max_distance, 0)
        rows = max_distance + 1 if geometry.causal else 2 * max_distance + 1
        like = self.query.weight
        self.rel_k = nn.Parameter(like.new_empty(1, rows, self.head_dim))
        self.rel_v = nn.Parameter(like.new_empty(1, rows, self.value_head_dim)) if values else None
        self.init_tables()

    def init_tables(self) -> None:
        """Glorot's uniform initialisation."""
        for table in (self.rel_k, self.rel_v):
            if table is not None:
                nn.init.xavier_uniform_(table[0])

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.init_tables()

    def score(self, q: Tensor, k_len: int) -> tuple[Tensor, Relative]:
        return q, Relative(self.rel_k, self.rel_v)


class TransformerXLAttention(Attention):
    """Self-attention of Transformer-XL (Dai et al. 2019, arXiv 1901.02860) and of Conformer.

        s_ij = ((q_i + u) . k_j + (q_i + v) . (W_kR R[i - j])) / sqrt(D_h)

    R are sinusoids of the distance, u and v learned vectors of each head (`content_bias`,
    `position_bias`; models that share them between layers assign one parameter to all). Causal is
    Transformer-XL, with the memory of earlier segments before x; Full is Conformer.

    Args:
        positions: the form of the sinusoids: "concatenated" (Transformer-XL's repository) or
            "interleaved" (most Conformers).
        geometry: default Causal().
        options: the other keywords of `Attention`.
    Example:
        >>> TransformerXLAttention(64, 8)(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        positions: str = "concatenated",
        geometry: Any = Causal(),  # noqa: B008 (frozen)
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, geometry=geometry, **options)
        check_choice("positions", positions, FORMS)
        self.positions = positions
        like = self.query.weight
        self.position = nn.Linear(
            dim, heads * self.head_dim, bias=False, device=like.device, dtype=like.dtype
        )
        self.content_bias = nn.Parameter(like.new_empty(heads, self.head_dim))
        self.position_bias = nn.Parameter(like.new_empty(heads, self.head_dim))
        self.init_position()

    def init_position(self) -> None:
        """Glorot's uniform initialisation; biases zero."""
        nn.init.xavier_uniform_(self.position.weight)
        nn.init.zeros_(self.content_bias)
        nn.init.zeros_(self.position_bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.init_position()

    def table(self, k_len: int) -> Tensor:
        """W_kR R of every distance among k_len keys, [H, rows, D_h], in the order of `Relative`."""
        least = 0 if self.geometry.causal else 1 - k_len
        distances = torch.arange(k_len - 1, least - 1, -1, device=self.position.weight.device)
        waves = sinusoids(distances, self.dim, self.positions).to(self.position.weight.dtype)
        return self.position(waves).unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def score(self, q: Tensor, k_len: int) -> tuple[Tensor, Relative]:
        content = q + self.content_bias.unsqueeze(1)
        position = q + self.position_bias.unsqueeze(1)
        return content, Relative(self.table(k_len), q_rel=position)

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        cache: KeyValueCache | None = None,
        **options: Any,
    ) -> Tensor:
        """As Attention.forward; memory [B, M, dim] are the layer's inputs of the M positions before
        x, in the paper's recurrence without gradient (the caller detaches them)."""
        if memory is not None and cache is not None:
            raise ValueError("memory must be None with a cache, which holds the past, got both")
        context = None if memory is None else torch.cat((memory, x), 1)
        return super().forward(x, context, cache=cache, **options)
