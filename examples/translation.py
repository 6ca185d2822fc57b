"""Translation of Django's messages: sentences as ids, batches, BLEU and samples, for every model."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .bleu import bleu
from .bpe import END, PAD, START, Vocabulary
from .data import catalogues
from .data.catalogues import Pairs
from .training import random_numbers, shuffled

PLACEHOLDER = re.compile(r"%\(\w+\)\w|%\w|\{\w*\}")
FIRST_NUMBER = 0xE000  # letters of private use stand for the first, second, ... placeholder
DROPOUT = 0.1  # of merges, in training
POOL = 8  # batches that are drawn at once and sorted by length, so that little is padding


def numbered(sentence: str, names: list[str]) -> str:
    """The sentence with a letter for each placeholder; names, filled here, tells which is which."""

    def letter(match: re.Match) -> str:
        if match[0] not in names:
            names.append(match[0])
        return chr(FIRST_NUMBER + names.index(match[0]))

    return PLACEHOLDER.sub(letter, sentence)


def named(sentence: str, names: list[str]) -> str:
    """The placeholders put back; a letter that stands for none is left out."""
    for index, name in enumerate(names):
        sentence = sentence.replace(chr(FIRST_NUMBER + index), name)
    return "".join(x for x in sentence if not 0xE000 <= ord(x) < 0xF000)


def padded(rows: list[list[int]]) -> Tensor:
    """Rows of ids as one tensor, filled up with PAD."""
    length = max(map(len, rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


class Batch(NamedTuple):
    """source [B, S] ends with END; target [B, T] begins with START and ends with END."""

    source: Tensor
    target: Tensor


class Corpus:
    """Training and validation pairs, and their common vocabulary.

    Args:
        sources, target: language codes. Sentences of all sources are trained on; the first one's
            validate.
        size: of the vocabulary.
    """

    def __init__(self, sources: list[str], target: str, size: int = 1000) -> None:
        found = [catalogues.load(source, target) for source in sources]
        self.train = Pairs(*(sum((pairs[0][i] for pairs in found), []) for i in range(2)))
        self.validation = found[0][1]
        columns = zip(*map(self.numbered_pair, *self.train), strict=True)
        self.sources, self.targets = map(list, columns)
        self.vocabulary = Vocabulary(self.sources + self.targets, size)

    @staticmethod
    def numbered_pair(source: str, target: str) -> tuple[str, str]:
        names: list[str] = []
        return numbered(source, names), numbered(target, names)

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """The training batch of a step."""
        dice = random.Random(random_numbers(seed, step).initial_seed())
        pool = shuffled(len(self.sources), POOL * size, seed, step // POOL).tolist()
        pool.sort(key=lambda i: len(self.sources[i]))
        part = torch.randperm(POOL, generator=random_numbers(seed, step // POOL))[step % POOL]
        chosen = pool[part * size : (part + 1) * size]
        return self.encoded(
            [self.sources[i] for i in chosen], [self.targets[i] for i in chosen], DROPOUT, dice
        )

    def encoded(
        self,
        sources: list[str],
        targets: list[str],
        dropout: float = 0.0,
        dice: random.Random | None = None,
    ) -> Batch:
        """Numbered sentences as ids."""
        encode = self.vocabulary.encode
        return Batch(
            padded([[*encode(x, dropout, dice), END] for x in sources]),
            padded([[START, *encode(x), END] for x in targets]),
        )

    def validation_batch(self) -> Batch:
        """All validation pairs."""
        pairs = [self.numbered_pair(*pair) for pair in zip(*self.validation, strict=True)]
        return self.encoded(*map(list, zip(*pairs, strict=True)))

    def translate(self, search: Callable[[Tensor], Tensor], sentences: list[str]) -> list[str]:
        """Sentences translated by `search`, which takes and gives ids."""
        names: list[list[str]] = [[] for _ in sentences]
        rows = [
            [*self.vocabulary.encode(numbered(x, n)), END]
            for x, n in zip(sentences, names, strict=True)
        ]
        found = search(padded(rows)).tolist()
        return [named(self.vocabulary.decode(x), n) for x, n in zip(found, names, strict=True)]

    def most_frequent(self) -> str:
        """The most frequent sentence to train on."""
        return Counter(self.train.target).most_common(1)[0][0]

    def baselines(self) -> dict[str, float]:
        """BLEU of what needs no model."""
        references = self.validation.target
        return {
            "copying the source": bleu(self.validation.source, references),
            "the most frequent sentence": bleu([self.most_frequent()] * len(references), references),
        }
