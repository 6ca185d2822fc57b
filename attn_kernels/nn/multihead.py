"""MultiheadAttention: the layer of that name in torch.nn, on the kernels of this library."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_kernels import Causal, Full, Pattern, attention
from attn_kernels.core.tracing import by_values

from .checks import check_all, check_count, check_fraction
from .layer import Layer
from .seen import Seen

MASK_IN_A_GRAPH = (
    "attn_mask: its values decide the geometry, outside of the graph; is_causal=True needs no mask"
)


class MultiheadAttention(Layer):
    """torch.nn.MultiheadAttention with fused attention: same arguments, parameters and results.

    It loads that layer's state dict strictly. What differs:

    - key_padding_mask must pad on the right: it becomes the lengths of the keys.
    - attn_mask must be the same for all entries and heads, and hide keys only (true or -inf, else
      false or 0). It becomes Causal if it is that, else a Pattern, compiled when it changes. The
      tensor of the call before is recognised; the values of another one are read, which waits for
      a GPU.
    - dropout acts on attention weights, which the kernels never hold: training with it is an error.
    - add_bias_kv and add_zero_attn do not exist.
    - need_weights=True computes the weights of O(Lq * Lk) memory beside the fused output, and
      records no gradient for them.
    - A query that sees no key gives the output's bias, not NaN.

    Args:
        backend: as for `attention`; the others are torch's.
    Example:
        >>> theirs = torch.nn.MultiheadAttention(64, 8, batch_first=True)
        >>> ours = MultiheadAttention(64, 8, batch_first=True)
        >>> ours.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 100, 64)
        >>> out, weights = ours(x, x, x, need_weights=False, is_causal=True)
    """

    # torch's encoder layers ask; not true, they call this layer in place of their own fused path.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_count("embed_dim", embed_dim)
        check_count("num_heads", num_heads)
        check_fraction("dropout", dropout)
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}"
            )
        for name, value in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if value:
                raise NotImplementedError(f"{name} must be False, got {value}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.backend = dropout, batch_first, backend
        factory = {"device": device, "dtype": dtype}

        def weight(name: str, *shape: int) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(*shape, **factory)))

        self.packed = self.kdim == self.vdim == embed_dim
        if self.packed:
            weight("in_proj_weight", 3 * embed_dim, embed_dim)
        else:
            weight("q_proj_weight", embed_dim, embed_dim)
            weight("k_proj_weight", embed_dim, self.kdim)
            weight("v_proj_weight", embed_dim, self.vdim)
        if bias:
            weight("in_proj_bias", 3 * embed_dim)
        else:
            self.register_parameter("in_proj_bias", None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias, **factory)
        self.seen: tuple[Seen, Causal | Pattern] | None = None
        self.compiled: tuple[Tensor, Pattern] | None = None
        self.init_parameters()

    def init_parameters(self) -> None:
        """torch's initialisation: Glorot's uniform one, and `Linear`'s for the last projection;
        biases zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("proj_weight"):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """[B, H, L, head_dim] of each."""
        if self.packed and query is key and key is value:
            parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = (
                self.in_proj_weight.chunk(3)
                if self.packed
                else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            )
            no_bias = self.in_proj_bias is None
            biases = (None, None, None) if no_bias else self.in_proj_bias.chunk(3)
            parts = map(F.linear, (query, key, value), weights, biases)
        return [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in parts]

    @by_values(MASK_IN_A_GRAPH)
    def geometry_of(self, mask: Tensor, q_len: int, k_len: int) -> Causal | Pattern:
        """The geometry that attn_mask means."""
        if mask.dim() not in (2, 3) or mask.shape[-2:] != (q_len, k_len):
            raise ValueError(
                f"attn_mask must have shape [{q_len}, {k_len}], got {list(mask.shape)}"
            )
        if self.seen is None or self.seen[0].x is not mask or self.seen[0].changed():
            self.seen = Seen(mask), self.compiled_geometry(visible_of(mask))
        return self.seen[1]

    def compiled_geometry(self, visible: Tensor) -> Causal | Pattern:
        """The geometry in which query i sees the keys j of visible [Lq, Lk]."""
        if torch.equal(visible, torch.ones_like(visible).tril()):
            return Causal()
        if self.compiled is None or not torch.equal(self.compiled[0], visible):
            self.compiled = visible, Pattern.from_mask(visible)
        return self.compiled[1]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and, if wanted, the weights: [B, Lq, Lk], or [B, H, Lq, Lk] not averaged.

        Args:
            query, key, value: [B, L, dim] if batch_first, else [L, B, dim]; or [L, dim].
            key_padding_mask: [B, Lk] (or [Lk]), true or -inf where a key is padding.
            attn_mask: [Lq, Lk] or [B * H, Lq, Lk], true or -inf where a key is hidden.
            is_causal: query i sees keys 0..i. It needs no attn_mask, and with one says nothing.
        """
        self.check(query, key, value)
        batched, same = query.dim() == 3, query is key and key is value
        parts = [query] if same else [query, key, value]
        if not batched:
            parts = [x.unsqueeze(0) for x in parts]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            parts = [x.transpose(0, 1) for x in parts]
        q, k, v = self.project(*(parts * 3 if same else parts))
        key_lengths = None
        geometry = Causal() if is_causal else Full()
        if key_padding_mask is not None:
            key_lengths = lengths_of(key_padding_mask, (k.shape[0], k.shape[2]))
        if attn_mask is not None:
            geometry = self.geometry_of(attn_mask, q.shape[2], k.shape[2])
        out, lse = attention(
            q, k, v, geometry, key_lengths=key_lengths, query_offset=0, return_lse=True,
            backend=self.backend,
        )  # fmt: skip
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = None
        if need_weights:
            weights = attention_weights(q, k, lse, geometry, key_lengths)
            weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Raise unless the layer may be called with these."""
        if self.training and self.dropout > 0:
            raise NotImplementedError(
                f"dropout must be 0 in training, got {self.dropout}: it acts on attention weights"
            )
        for name, x, dim in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            if x.dim() not in (2, 3) or x.dim() != query.dim() or x.shape[-1] != dim:
                raise ValueError(
                    f"{name} must have shape [*, *, {dim}] or [*, {dim}] and as many dimensions as"
                    f" query, got {list(x.shape)}"
                )


def as_bool(name: str, mask: Tensor) -> Tensor:
    """A mask of torch, true where nothing is seen: bool, or 0 and -inf added to the logits."""
    if mask.dtype == torch.bool:
        return mask
    rule = f"{name} must be bool or hold only 0 and -inf"
    if not torch.is_floating_point(mask):
        raise NotImplementedError(f"{rule}, got {str(mask.dtype)[6:]}")
    hidden = mask == -torch.inf
    check_all(rule, (mask == 0) | hidden, lambda: "other values", NotImplementedError)
    return hidden


def lengths_of(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The lengths that a mask of right padding means, [B]."""
    if tuple(mask.shape) != shape:
        raise ValueError(f"key_padding_mask must have shape {list(shape)}, got {list(mask.shape)}")
    mask = as_bool("key_padding_mask", mask)
    lengths = (~mask).sum(1)
    right = torch.arange(shape[1], device=mask.device) >= lengths.unsqueeze(1)
    check_all(
        "key_padding_mask must be true only behind the last key (padding on the right)",
        mask == right,
        lambda: "another pattern",
        NotImplementedError,
    )
    return lengths


def visible_of(mask: Tensor) -> Tensor:
    """Which keys each query sees, [Lq, Lk], under a mask for all entries and heads."""
    visible = ~as_bool("attn_mask", mask)
    if mask.dim() == 3:
        if not torch.equal(visible, visible[:1].expand_as(visible)):
            raise NotImplementedError(
                "attn_mask must be the same for all entries and heads, got different ones"
            )
        visible = visible[0]
    return visible


@torch.no_grad()
def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    geometry: Full | Causal | Pattern,
    key_lengths: Tensor | None,
) -> Tensor:
    """softmax(q k^T / sqrt(D)) densely, [B, H, Lq, Lk], from the lse of the fused output."""
    logits = q @ k.mT * q.shape[3] ** -0.5
    q_pos = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
    k_pos = torch.arange(k.shape[2], device=q.device)
    visible = geometry.visible(q_pos, k_pos)
    if key_lengths is not None:
        visible = visible & (k_pos < key_lengths.view(-1, 1, 1, 1))
    return torch.exp(logits - lse.unsqueeze(-1)).masked_fill(~visible, 0).to(q.dtype)
