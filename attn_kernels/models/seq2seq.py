"""RNN sequence to sequence (Sutskever et al. 2014), and what all such models share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attn_kernels.nn.checks import check_count, check_counts, check_fraction, check_ids

from .config import Config
from .sampling import generate
from .search import beam_search
from .tokens import lengths_of, reverse
from .training import smoothed_cross_entropy


@dataclass(frozen=True)
class Seq2SeqConfig(Config):
    """Vocabularies, and the ids of padding, of the start and of the end of a sentence."""

    source_vocab: int
    target_vocab: int
    pad: int = 0
    start: int = 1
    end: int = 2

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_counts(self, "source_vocab", "target_vocab", least=2)
        check_counts(self, "pad", "start", "end", least=0)
        ids = (self.pad, self.start, self.end)
        if len(set(ids)) < 3:
            raise ValueError(f"{owner}: pad, start and end must differ, got {ids}")
        if max(ids) >= self.target_vocab:
            raise ValueError(
                f"{owner}: pad, start and end must be below target_vocab = {self.target_vocab},"
                f" got {ids}"
            )


class Seq2Seq(nn.Module):
    """Base of the recurrent translators: source [B, S] and target [B, T] in, logits out.

    Sentences are ids, padded on the right with config.pad. A subclass gives `encode`, `advance` and
    `readout`; a state is a NamedTuple of tensors with the batch first.
    """

    def __init__(self, config: Seq2SeqConfig, embed_dim: int, backend: str | None = None) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        self.source_embedding = nn.Embedding(config.source_vocab, embed_dim)
        self.target_embedding = nn.Embedding(config.target_vocab, embed_dim)

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """The decoder's first state, for source [B, S]."""
        raise NotImplementedError

    def advance(self, embedded: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one embedded token [B, E]: what `readout` needs [B, F], and the next state."""
        raise NotImplementedError

    def readout(self, features: Tensor) -> Tensor:
        """Logits [..., target_vocab] of features [..., F]."""
        raise NotImplementedError

    def decode(self, embedded: Tensor, state: Any) -> Tensor:
        """`advance` over embedded [B, T, E]: features [B, T, F]."""
        features = []
        for each in embedded.unbind(1):
            feature, state = self.advance(each, state)
            features.append(feature)
        return torch.stack(features, 1)

    def first_state(self, source: Tensor) -> Any:
        """Check the source and encode it."""
        check_ids("source", source, self.config.source_vocab)
        return self.encode(source, lengths_of("source", source, self.config.pad))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits [B, T, target_vocab] of what follows each token of target [B, T]."""
        check_ids("target", target, self.config.target_vocab)
        if len(target) != len(source):
            raise ValueError(f"target must have batch {len(source)} like source, got {len(target)}")
        return self.readout(self.decode(self.target_embedding(target), self.first_state(source)))

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per token of target [B, T], which begins with config.start and whose
        sentences finish with config.end; padding does not count."""
        lengths_of("target", target, self.config.pad)
        logits = self(source, target[:, :-1])
        return smoothed_cross_entropy(logits, target[:, 1:], ignore=self.config.pad)

    @torch.no_grad()
    def translate(
        self, source: Tensor, *, beams: int = 4, alpha: float = 0.0, steps: int | None = None
    ) -> Tensor:
        """The best translations found, [B, length], without config.start and filled up with
        config.end. `pad` and `start` are never part of one.

        Args:
            source: [B, S].
            beams: 1 is greedy.
            alpha: exponent of the length penalty, which these papers do not have.
            steps: the longest translation; default S + 50.
        """
        c = self.config
        check_count("beams", beams)
        steps = source.shape[1] + 50 if steps is None else steps
        state = self.first_state(source)

        def logits_of(tokens: Tensor) -> Tensor:
            nonlocal state
            features, state = self.advance(self.target_embedding(tokens[:, -1]), state)
            return forbid(self.readout(features), (c.pad, c.start))

        def reorder(entries: Tensor) -> None:
            nonlocal state
            state = type(state)(*(x.index_select(0, entries) for x in state))

        start = source.new_full((len(source),), c.start)
        if beams == 1:
            tokens = generate(logits_of, start.unsqueeze(1), steps, temperature=0, end=c.end)
            return tokens[:, 1:]
        reorder(torch.arange(len(source), device=source.device).repeat_interleave(beams))
        found, _ = beam_search(
            logits_of, reorder, start, beams=beams, end=c.end, steps=steps, alpha=alpha
        )
        return found


def forbid(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    """logits [..., V] of which these ids are never drawn."""
    index = torch.tensor(ids, device=logits.device)
    return logits.index_fill(-1, index, -torch.inf)


def run_lstm(
    lstm: nn.LSTM, x: Tensor, hidden: Tensor | None = None, cell: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [B, T, H], and hidden and cell states with the batch first, [B, layers, H]."""
    state = None
    if hidden is not None:
        state = (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
    out, (hidden, cell) = lstm(x, state)
    return out, hidden.transpose(0, 1), cell.transpose(0, 1)


def run_packed(rnn: nn.RNNBase, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """What rnn gives for x [B, S, E], of which each entry ends at its length; 0 behind it."""
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    out, state = rnn(packed)
    out, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    return out, state


@dataclass(frozen=True)
class RnnSeq2SeqConfig(Seq2SeqConfig):
    """Sizes of Sutskever's model: `layers` LSTMs of `hidden_dim` cells on each side."""

    embed_dim: int = 1000
    hidden_dim: int = 1000
    layers: int = 4
    reverse_source: bool = True
    dropout: float = 0.0
    init_range: float = 0.08

    presets: ClassVar = {"sutskever2014": {"source_vocab": 160_000, "target_vocab": 80_000}}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "embed_dim", "hidden_dim", "layers")
        check_fraction(f"{type(self).__name__}: dropout", self.dropout)


class LstmState(NamedTuple):
    """Hidden and cell states, [B, layers, H]."""

    hidden: Tensor
    cell: Tensor


class RnnSeq2Seq(Seq2Seq):
    """Sequence to Sequence Learning with Neural Networks (Sutskever et al. 2014, arXiv 1409.3215).

        (h_s, c_s) = LSTM(x_S, ..., x_1)                          the source read backwards
        p(y_t | y_<t, x) = softmax(W g_t + b),  g = LSTM'(y_0, y_1, ...) from the state (h_s, c_s)

    All parameters start uniform in [-0.08, 0.08]. The preset has the paper's 384 M weights.
    Differences: torch's LSTM has two bias vectors per gate and no peepholes (Graves' cell, which
    the paper cites, has them); the softmax has a bias. There is no attention for `backend` to
    compute; the argument is here because every model has it.
    """

    def __init__(self, config: RnnSeq2SeqConfig, backend: str | None = None) -> None:
        super().__init__(config, config.embed_dim, backend)
        sizes = (config.embed_dim, config.hidden_dim, config.layers)
        dropout = config.dropout if config.layers > 1 else 0.0
        self.encoder = nn.LSTM(*sizes, batch_first=True, dropout=dropout)
        self.decoder = nn.LSTM(*sizes, batch_first=True, dropout=dropout)
        self.output = nn.Linear(config.hidden_dim, config.target_vocab)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -config.init_range, config.init_range)

    def encode(self, source: Tensor, lengths: Tensor) -> LstmState:
        if self.config.reverse_source:
            source = reverse(source, lengths)
        _, (hidden, cell) = run_packed(self.encoder, self.source_embedding(source), lengths)
        return LstmState(hidden.transpose(0, 1), cell.transpose(0, 1))

    def advance(self, embedded: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        out, hidden, cell = run_lstm(self.decoder, embedded.unsqueeze(1), *state)
        return out.squeeze(1), LstmState(hidden, cell)

    def decode(self, embedded: Tensor, state: LstmState) -> Tensor:
        return run_lstm(self.decoder, embedded, *state)[0]

    def readout(self, features: Tensor) -> Tensor:
        return self.output(features)
