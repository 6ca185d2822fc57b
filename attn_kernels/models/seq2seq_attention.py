"""RNN sequence to sequence with attention: Bahdanau et al. 2015 and Luong et al. 2015."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attn_kernels.nn.checks import check_choice, check_counts, check_fraction
from attn_kernels.nn.layer import Layer

from .recurrent import run_lstm, run_packed
from .recurrent_attention import AdditiveAttention, DotAttention
from .seq2seq import Seq2Seq, Seq2SeqConfig
from .tokens import reverse

SCORES = ("dot", "general", "concat")


class AttentionSeq2Seq(Seq2Seq):
    """Base of those with attention: alignments can be looked at."""

    def weights_at(self, before: Any, after: Any) -> Tensor:
        """Attention weights [B, S] of the step from one state to the next."""
        raise NotImplementedError

    @torch.no_grad()
    def alignments(self, source: Tensor, target: Tensor) -> Tensor:
        """How much what follows each token of target [B, T] attended to each token of the source,
        [B, T, S]; 0 on padding."""
        state, rows = self.first_state(source), []
        for tokens in target.unbind(1):
            _, after = self.advance(self.target_embedding(tokens), state)
            rows.append(self.weights_at(state, after))
            state = after
        return torch.stack(rows, 1)


@dataclass(frozen=True)
class BahdanauConfig(Seq2SeqConfig):
    """Sizes of RNNsearch: embeddings m, states n, alignment n', maxout units l."""

    embed_dim: int = 620
    hidden_dim: int = 1000
    align_dim: int = 1000
    maxout_dim: int = 500
    dropout: float = 0.0

    presets: ClassVar = {"rnnsearch": {"source_vocab": 30_000, "target_vocab": 30_000}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "embed_dim", "hidden_dim", "align_dim", "maxout_dim")
        check_fraction(f"{type(self).__name__}: dropout", self.dropout)


class BahdanauState(NamedTuple):
    """s_i [B, n]; annotations h [B, S, 2n], U h [B, S, n'] and their lengths [B]."""

    hidden: Tensor
    memory: Tensor
    keys: Tensor
    lengths: Tensor


class ContextGru(Layer):
    """The decoder's gated unit, which also reads a context (appendix A.1.1).

    z  = sigmoid(W_z y + U_z s + C_z c)
    r  = sigmoid(W_r y + U_r s + C_r c)
    s~ = tanh(W y + U (r * s) + C c)
    s' = (1 - z) * s + z * s~
    """

    def __init__(self, input_dim: int, context_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(input_dim + context_dim, 3 * hidden_dim)
        self.gates = nn.Linear(hidden_dim, 2 * hidden_dim, bias=False)
        self.candidate = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(self, embedded: Tensor, context: Tensor, hidden: Tensor) -> Tensor:
        update, reset, candidate = self.inputs(torch.cat([embedded, context], -1)).chunk(3, -1)
        own_update, own_reset = self.gates(hidden).chunk(2, -1)
        update, reset = torch.sigmoid(update + own_update), torch.sigmoid(reset + own_reset)
        candidate = torch.tanh(candidate + self.candidate(reset * hidden))
        return torch.lerp(hidden, candidate, update)


class BahdanauSeq2Seq(AttentionSeq2Seq):
    """RNNsearch of Bahdanau et al. 2015 (arXiv 1409.0473).

        h_j = [forward GRU; backward GRU]_j,   s_0 = tanh(W_s backward h_1)
        c_i = additive attention of s_{i-1} over h
        s_i = GRU(s_{i-1}, E y_{i-1}, c_i)
        t_i = maxout(U_o s_i + V_o E y_{i-1} + C_o c_i),   p(y_i) = softmax(W_o t_i)

    Weights start as in appendix B.1: recurrent ones orthogonal, those of the alignment with
    standard deviation 0.001 and v zero, the others 0.01, biases zero.
    Differences: the encoder is torch's GRU, which resets behind the recurrent product, r * (U h),
    where the paper has U (r * h) (the decoder is the paper's); the readout reads s_i as equation 4
    has it, where appendix A.2.2 prints s_{i-1}; linear maps and the softmax have biases.
    The attention is additive, so `backend` changes nothing: see `AdditiveAttention`.
    """

    def __init__(self, config: BahdanauConfig, backend: str | None = None) -> None:
        super().__init__(config, config.embed_dim, backend)
        embed, hidden = config.embed_dim, config.hidden_dim
        self.encoder = nn.GRU(embed, hidden, batch_first=True, bidirectional=True)
        self.initial = nn.Linear(hidden, hidden)
        self.attention = AdditiveAttention(hidden, 2 * hidden, config.align_dim)
        self.cell = ContextGru(embed, 2 * hidden, hidden)
        self.deep = nn.Linear(hidden + embed + 2 * hidden, 2 * config.maxout_dim)
        self.output = nn.Linear(config.maxout_dim, config.target_vocab)
        self.dropout = nn.Dropout(config.dropout)
        self.init_parameters()

    def init_parameters(self) -> None:
        """The paper's appendix B.1."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter) if parameter.dim() == 1 else nn.init.normal_(
                parameter, std=0.01
            )
        recurrent = [
            p for name, p in self.encoder.named_parameters() if name.startswith("weight_hh")
        ]
        for weight in (*recurrent, self.cell.gates.weight, self.cell.candidate.weight):
            for gate in weight.data.split(self.config.hidden_dim):
                nn.init.orthogonal_(gate)
        nn.init.normal_(self.attention.query.weight, std=0.001)
        nn.init.normal_(self.attention.memory.weight, std=0.001)
        nn.init.zeros_(self.attention.score.weight)

    def encode(self, source: Tensor, lengths: Tensor) -> BahdanauState:
        embedded = self.dropout(self.source_embedding(source))
        memory, last = run_packed(self.encoder, embedded, lengths)
        hidden = torch.tanh(self.initial(last[1]))  # the backward state at the first token
        return BahdanauState(hidden, memory, self.attention.keys(memory), lengths)

    def advance(self, embedded: Tensor, state: BahdanauState) -> tuple[Tensor, BahdanauState]:
        hidden, memory, keys, lengths = state
        context = self.attention(hidden.unsqueeze(1), keys, memory, lengths).squeeze(1)
        hidden = self.cell(embedded, context, hidden)
        return torch.cat([hidden, embedded, context], -1), state._replace(hidden=hidden)

    def readout(self, features: Tensor) -> Tensor:
        pairs = self.deep(features).unflatten(-1, (-1, 2))
        return self.output(self.dropout(pairs.amax(-1)))

    def weights_at(self, before: BahdanauState, after: BahdanauState) -> Tensor:
        query = before.hidden.unsqueeze(1)
        return self.attention.weights(query, before.keys, before.lengths).squeeze(1)


@dataclass(frozen=True)
class LuongConfig(Seq2SeqConfig):
    """Sizes of Luong's model, and which score it has: "dot", "general" or "concat"."""

    embed_dim: int = 1000
    hidden_dim: int = 1000
    layers: int = 4
    score: str = "general"
    input_feeding: bool = True
    reverse_source: bool = True
    dropout: float = 0.2
    init_range: float = 0.1

    presets: ClassVar = {
        f"luong2015-{score}": {"source_vocab": 50_000, "target_vocab": 50_000, "score": score}
        for score in SCORES
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "embed_dim", "hidden_dim", "layers")
        check_choice(f"{type(self).__name__}: score", self.score, SCORES)
        check_fraction(f"{type(self).__name__}: dropout", self.dropout)


class LuongState(NamedTuple):
    """Hidden and cell states [B, layers, H], h~ of the step before [B, H]; the source's memory and
    keys [B, S, H] and lengths [B]."""

    hidden: Tensor
    cell: Tensor
    fed: Tensor
    memory: Tensor
    keys: Tensor
    lengths: Tensor


class LuongSeq2Seq(AttentionSeq2Seq):
    """Global attention with input feeding of Luong et al. 2015 (arXiv 1508.04025).

        h_t  = LSTM([E y_{t-1}; h~_{t-1}])                    the states start from the encoder's
        c_t  = attention of h_t over the encoder's top layer, score dot, general or concat
        h~_t = tanh(W_c [c_t; h_t]),   p(y_t) = softmax(W_s h~_t)

    dot and general run through `attention` (one head, unscaled); concat is additive attention.
    Without input feeding the whole target is one call of it. All parameters start uniform in
    [-0.1, 0.1]; dropout is on embeddings and between layers.
    Differences: biases as in torch's LSTM, and in concat and the softmax. The local (predictive
    window) attention of section 3.2 is not here.
    """

    def __init__(self, config: LuongConfig, backend: str | None = None) -> None:
        super().__init__(config, config.embed_dim, backend)
        embed, hidden, layers = config.embed_dim, config.hidden_dim, config.layers
        between = config.dropout if layers > 1 else 0.0
        fed = hidden if config.input_feeding else 0
        self.encoder = nn.LSTM(embed, hidden, layers, batch_first=True, dropout=between)
        self.decoder = nn.LSTM(embed + fed, hidden, layers, batch_first=True, dropout=between)
        if config.score == "concat":
            self.attention = AdditiveAttention(hidden, hidden, hidden)
        else:
            self.attention = DotAttention(hidden, config.score == "general", backend)
        self.combine = nn.Linear(2 * hidden, hidden, bias=False)
        self.output = nn.Linear(hidden, config.target_vocab)
        self.dropout = nn.Dropout(config.dropout)
        self.init_parameters()

    def init_parameters(self) -> None:
        """All uniform in [-init_range, init_range]."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.config.init_range, self.config.init_range)

    def encode(self, source: Tensor, lengths: Tensor) -> LuongState:
        if self.config.reverse_source:
            source = reverse(source, lengths)
        embedded = self.dropout(self.source_embedding(source))
        memory, (hidden, cell) = run_packed(self.encoder, embedded, lengths)
        fed = memory.new_zeros(len(source), self.config.hidden_dim)
        hidden, cell = hidden.transpose(0, 1), cell.transpose(0, 1)
        return LuongState(hidden, cell, fed, memory, self.attention.keys(memory), lengths)

    def attend(self, out: Tensor, state: LuongState) -> Tensor:
        """h~ of the decoder's outputs h [B, T, H]."""
        context = self.attention(out, state.keys, state.memory, state.lengths)
        return torch.tanh(self.combine(torch.cat([context, out], -1)))

    def advance(self, embedded: Tensor, state: LuongState) -> tuple[Tensor, LuongState]:
        embedded = self.dropout(embedded)
        if self.config.input_feeding:
            embedded = torch.cat([embedded, state.fed], -1)
        out, hidden, cell = run_lstm(self.decoder, embedded.unsqueeze(1), state.hidden, state.cell)
        fed = self.attend(out, state).squeeze(1)
        return fed, state._replace(hidden=hidden, cell=cell, fed=fed)

    def decode(self, embedded: Tensor, state: LuongState) -> Tensor:
        if self.config.input_feeding:
            return super().decode(embedded, state)
        out, _, _ = run_lstm(self.decoder, self.dropout(embedded), state.hidden, state.cell)
        return self.attend(out, state)

    def readout(self, features: Tensor) -> Tensor:
        return self.output(features)

    def weights_at(self, before: LuongState, after: LuongState) -> Tensor:
        query = after.hidden[:, -1:]
        weights = self.attention.weights(query, after.keys, after.lengths).squeeze(1)
        return reverse(weights, after.lengths) if self.config.reverse_source else weights
