"""Byte-pair encoding (Sennrich et al. 2016): the pieces that words are made of, learned from text.

A word keeps the space before it, so that pieces joined again are the sentence.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
WORD = re.compile(r"\s?%\(\w+\)\w|\s?\w+|\s?[^\w\s]")  # a placeholder, a word or a sign
PRIVATE = re.compile("[\ue000-\uf8ff]")
Pair = tuple[str, str]


def merged(pieces: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    """The pieces with every occurrence of the pair joined."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return tuple(result)


def learn(words: Counter, merges: int) -> list[Pair]:
    """The merges, most frequent pair first; of equally frequent ones the first in the alphabet."""
    pieces = {word: tuple(word) for word in words}
    counts: Counter = Counter()
    holders: dict[Pair, set[str]] = defaultdict(set)
    for word, letters in pieces.items():
        for pair in pairwise(letters):
            counts[pair] += words[word]
            holders[pair].add(word)
    found: list[Pair] = []
    while len(found) < merges and counts:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        found.append(best)
        for word in list(holders[best]):
            before, after = pieces[word], merged(pieces[word], best)
            pieces[word] = after
            for pair in pairwise(before):
                counts[pair] -= words[word]
                holders[pair].discard(word)
            for pair in pairwise(after):
                counts[pair] += words[word]
                holders[pair].add(word)
        counts += Counter()  # forget pairs that are gone
    return found


class Vocabulary:
    """Pieces and their ids: 0 to 3 are padding, start, end and unknown.

    Args:
        sentences: what the pieces are learned from.
        size: the most pieces, letters and SPECIAL counted.
    """

    def __init__(self, sentences: Iterable[str], size: int) -> None:
        words = Counter(word for sentence in sentences for word in WORD.findall(sentence))
        if not words:
            raise ValueError("sentences must hold at least one word, got none")
        letters = sorted({letter for word in words for letter in word})
        merges = learn(words, max(0, size - len(SPECIAL) - len(letters)))
        self.rank = {pair: index for index, pair in enumerate(merges)}
        self.pieces = list(dict.fromkeys([*SPECIAL, *letters, *map("".join, merges)]))
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}

    def __len__(self) -> int:
        return len(self.pieces)

    def split(
        self, word: str, dropout: float = 0.0, dice: random.Random | None = None
    ) -> list[str]:
        """The word's pieces. Each merge is left out with the probability `dropout`, so that a model
        sees many spellings of a rare word (Provilkov et al. 2020)."""
        pieces = tuple(word)
        while len(pieces) > 1:
            pairs = [x for x in pairwise(pieces) if x in self.rank]
            if dropout:
                pairs = [x for x in pairs if dice.random() >= dropout]
            if not pairs:
                break
            pieces = merged(pieces, min(pairs, key=self.rank.__getitem__))
        return list(pieces)

    def encode(
        self, sentence: str, dropout: float = 0.0, dice: random.Random | None = None
    ) -> list[int]:
        """Ids of the sentence's pieces."""
        words = WORD.findall(sentence)
        pieces = [piece for word in words for piece in self.split(word, dropout, dice)]
        return [self.ids.get(piece, UNKNOWN) for piece in pieces]

    def label(self, index: int) -> str:
        """The piece for a picture: letters of private use, which fonts lack, as a sign."""
        return PRIVATE.sub("\N{WHITE SQUARE}", self.pieces[index])

    def decode(self, ids: Iterable[int]) -> str:
        """The sentence up to END."""
        pieces = []
        for index in ids:
            if index == END:
                break
            if index >= len(SPECIAL):
                pieces.append(self.pieces[index])
        return "".join(pieces).strip()
