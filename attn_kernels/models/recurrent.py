"""What recurrent decoders share: teacher forcing, the loss, greedy and beam search."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attn_kernels.nn.checks import check_count, check_counts, check_ids
from attn_kernels.nn.layer import Layer

from .config import Config
from .sampling import generate
from .search import beam_search
from .tokens import lengths_of
from .training import smoothed_cross_entropy


def check_special_ids(config: Config, vocab: int) -> None:
    """Raise unless the config's pad, start and end are three ids below `vocab`."""
    owner = type(config).__name__
    check_counts(config, "pad", "start", "end", least=0)
    ids = (config.pad, config.start, config.end)
    if len(set(ids)) < 3:
        raise ValueError(f"{owner}: pad, start and end must differ, got {ids}")
    if max(ids) >= vocab:
        raise ValueError(
            f"{owner}: pad, start and end must be below the {vocab} words of the target, got {ids}"
        )


class RecurrentDecoder(Layer):
    """Base of models that read a source and write a sentence, one word after the other.

    Sentences are ids [B, T], padded on the right with config.pad. A subclass gives `first_state`,
    `advance` and `readout`; a state is a NamedTuple of tensors with the batch first.
    """

    def __init__(self, config: Any, vocab: int, embed_dim: int, backend: str | None = None) -> None:
        super().__init__()
        self.config, self.vocab, self.backend = config, vocab, backend
        self.target_embedding = nn.Embedding(vocab, embed_dim)

    def first_state(self, source: Tensor) -> Any:
        """Check the source and encode it."""
        raise NotImplementedError

    def advance(self, embedded: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one embedded word [B, E]: what `readout` needs [B, F], and the next state."""
        raise NotImplementedError

    def readout(self, features: Tensor) -> Tensor:
        """Logits [..., vocab] of features [..., F]."""
        raise NotImplementedError

    def decode(self, embedded: Tensor, state: Any) -> Tensor:
        """`advance` over embedded [B, T, E]: features [B, T, F]."""
        features = []
        for each in embedded.unbind(1):
            feature, state = self.advance(each, state)
            features.append(feature)
        return torch.stack(features, 1)

    def embed_target(self, source: Tensor, target: Tensor) -> Tensor:
        """The target's embeddings [B, T, E], checked."""
        check_ids("target", target, self.vocab)
        if len(target) != len(source):
            raise ValueError(f"target must have batch {len(source)} like source, got {len(target)}")
        return self.target_embedding(target)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits [B, T, vocab] of what follows each word of target [B, T]."""
        embedded = self.embed_target(source, target)
        return self.readout(self.decode(embedded, self.first_state(source)))

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per word of target [B, T], which begins with config.start and whose
        sentences finish with config.end; padding does not count."""
        lengths_of("target", target, self.config.pad)
        logits = self(source, target[:, :-1])
        return smoothed_cross_entropy(logits, target[:, 1:], ignore=self.config.pad)

    @torch.no_grad()
    def search(self, source: Tensor, *, beams: int, alpha: float, steps: int) -> Tensor:
        """The best sentences found, [B, length], without config.start and filled up with
        config.end. `pad` and `start` are never part of one.

        Args:
            beams: 1 is greedy.
            alpha: exponent of `beam_search`'s length penalty.
            steps: the longest sentence, config.end counted.
        """
        c = self.config
        check_count("beams", beams)
        state = self.first_state(source)

        def logits_of(tokens: Tensor) -> Tensor:
            nonlocal state
            features, state = self.advance(self.target_embedding(tokens[:, -1]), state)
            return forbid(self.readout(features), (c.pad, c.start))

        def reorder(entries: Tensor) -> None:
            nonlocal state
            state = type(state)(*(x.index_select(0, entries) for x in state))

        start = torch.full((len(source),), c.start, device=source.device)
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
    return logits.index_fill(-1, torch.tensor(ids, device=logits.device), -torch.inf)


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
