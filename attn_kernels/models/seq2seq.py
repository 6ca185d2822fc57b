"""RNN sequence to sequence (Sutskever et al. 2014), and the base of those with attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from attn_kernels.nn.checks import check_counts, check_fraction, check_ids

from .config import Config
from .recurrent import RecurrentDecoder, check_special_ids, run_lstm, run_packed
from .tokens import lengths_of, reverse


@dataclass(frozen=True)
class Seq2SeqConfig(Config):
    """Vocabularies, and the ids of padding, of the start and of the end of a sentence."""

    source_vocab: int
    target_vocab: int
    pad: int = 0
    start: int = 1
    end: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "source_vocab", "target_vocab")
        check_special_ids(self, self.target_vocab)


class Seq2Seq(RecurrentDecoder):
    """Base of the recurrent translators: a sentence [B, S] in, a sentence [B, T] out. A subclass
    gives `encode` instead of `first_state`."""

    def __init__(self, config: Seq2SeqConfig, embed_dim: int, backend: str | None = None) -> None:
        super().__init__(config, config.target_vocab, embed_dim, backend)
        self.source_embedding = nn.Embedding(config.source_vocab, embed_dim)

    def encode(self, source: Tensor, lengths: Tensor) -> Any:
        """The decoder's first state, for source [B, S] of these lengths [B]."""
        raise NotImplementedError

    def first_state(self, source: Tensor) -> Any:
        check_ids("source", source, self.config.source_vocab)
        return self.encode(source, lengths_of("source", source, self.config.pad))

    def translate(
        self, source: Tensor, *, beams: int = 4, alpha: float = 0.0, steps: int | None = None
    ) -> Tensor:
        """`search` with steps S + 50 by default; these papers have no length penalty."""
        check_ids("source", source, self.config.source_vocab)
        steps = source.shape[1] + 50 if steps is None else steps
        return self.search(source, beams=beams, alpha=alpha, steps=steps)


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
        self.init_parameters()

    def init_parameters(self) -> None:
        """All uniform in [-init_range, init_range]."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.config.init_range, self.config.init_range)

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
