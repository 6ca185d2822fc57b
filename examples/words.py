"""Captions as ids of words: 0 to 3 are padding, start, end and words that were not trained on."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from .bpe import END, PAD, SPECIAL, START, UNKNOWN


class Words:
    """The words of training captions.

    Args:
        captions: what to learn from; a caption is words with a space between.
    """

    def __init__(self, captions: list[str]) -> None:
        found = {word for caption in captions for word in caption.split()}
        if not found:
            raise ValueError("captions must hold at least one word, got none")
        self.words = [*SPECIAL, *sorted(found)]
        self.ids = {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """START, the words, END."""
        found = caption.lower().split()
        if not found:
            raise ValueError("a caption must hold at least one word, got none")
        return [START, *(self.ids.get(word, UNKNOWN) for word in found), END]

    def decode(self, ids: list[int]) -> str:
        """The words up to END."""
        ids = ids[: ids.index(END)] if END in ids else ids
        return " ".join(self.words[i] for i in ids if i not in (PAD, START))

    def batch(self, captions: list[str]) -> Tensor:
        """Captions as one tensor [n, longest], filled up with PAD."""
        rows = [torch.tensor(self.encode(caption)) for caption in captions]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)

    def marginal_nll(self, train: list[str], validation: list[str]) -> float:
        """Nats per known word for who knows how often each occurs (once more than seen)."""
        counts = Counter(i for caption in train for i in self.encode(caption)[1:])
        total = sum(counts.values()) + len(self)
        ids = [i for caption in validation for i in self.encode(caption)[1:] if i != UNKNOWN]
        return -sum(math.log((counts[i] + 1) / total) for i in ids) / len(ids)
