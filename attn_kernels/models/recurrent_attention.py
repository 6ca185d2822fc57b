"""Attention of recurrent decoders over an encoder's annotations: additive, and by dot products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_kernels import Full, attention
from attn_kernels.nn.layer import Layer


def masked_softmax(logits: Tensor, lengths: Tensor | None) -> Tensor:
    """Softmax over the last axis of logits [B, T, S], of which entry b has lengths[b] keys."""
    if lengths is not None:
        positions = torch.arange(logits.shape[-1], device=logits.device)
        logits = logits.masked_fill(positions >= lengths.view(-1, 1, 1), -torch.inf)
    return logits.softmax(-1)


class AdditiveAttention(Layer):
    """Attention by a small network (Bahdanau et al. 2015, arXiv 1409.0473, section 3.1).

        e_ij = v . tanh(W s_i + U h_j + b),    a_ij = softmax_j(e_ij),    c_i = sum_j a_ij h_j

    Luong's concat score v . tanh(W [s; h]) and the attention of Show, Attend and Tell are the same
    formula. It is no dot product: it runs in plain torch on every backend, and takes memory for
    tanh of all T * S pairs.
    """

    def __init__(self, query_dim: int, memory_dim: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, dim, bias)
        self.memory = nn.Linear(memory_dim, dim, bias=False)
        self.score = nn.Linear(dim, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """U h_j of memory [B, S, M]: [B, S, dim], the same for all queries."""
        return self.memory(memory)

    def weights(self, query: Tensor, keys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """a of query [B, T, Q]: [B, T, S]."""
        hidden = torch.tanh(self.query(query).unsqueeze(2) + keys.unsqueeze(1))  # [B, T, S, dim]
        return masked_softmax(self.score(hidden).squeeze(-1), lengths)

    def forward(
        self, query: Tensor, keys: Tensor, memory: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """c of query [B, T, Q] over memory [B, S, M]: [B, T, M]."""
        return self.weights(query, keys, lengths) @ memory


class DotAttention(Layer):
    """Luong's dot and general scores (Luong et al. 2015, arXiv 1508.04025, section 3.1).

        e_ij = s_i . h_j    or    s_i . W h_j,    a_ij = softmax_j(e_ij),    c_i = sum_j a_ij h_j

    It is `attention` with one head, unscaled. The CPU kernels reach a dim of 512; the paper's 1000
    run on the reference.
    """

    def __init__(self, dim: int, general: bool, backend: str | None = None) -> None:
        super().__init__()
        self.memory = nn.Linear(dim, dim, bias=False) if general else nn.Identity()
        self.backend = backend

    def keys(self, memory: Tensor) -> Tensor:
        """h_j or W h_j of memory [B, S, dim]."""
        return self.memory(memory)

    def weights(self, query: Tensor, keys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """a of query [B, T, dim], for people to look at: [B, T, S]."""
        return masked_softmax(query @ keys.mT, lengths)

    def forward(
        self, query: Tensor, keys: Tensor, memory: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """c of query [B, T, dim] over memory [B, S, dim]: [B, T, dim]."""
        one_head = (x.unsqueeze(1) for x in (query, keys, memory))
        out = attention(*one_head, Full(), scale=1.0, key_lengths=lengths, backend=self.backend)
        return out.squeeze(1)
