"""BLEU (Papineni et al. 2002), corpus level, one reference, n-grams up to 4.

    BLEU = 100 * min(1, exp(1 - r / c)) * exp(mean_n log p_n)

p_n is the share of the hypotheses' n-grams that the references have too, each counted at most as
often as there; c and r are the lengths of all hypotheses and references. A p_n of 0 makes it 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 4
TOKEN = re.compile(r"%\(\w+\)\w|\w+|[^\w\s]")  # a placeholder, a word, a sign


def tokens(sentence: str) -> list[str]:
    """Words, signs and Django's placeholders, with their case."""
    return TOKEN.findall(sentence)


def ngrams(words: Sequence[str], n: int) -> Counter:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of the sentences, 0 to 100."""
    if len(hypotheses) != len(references):
        raise ValueError(
            f"hypotheses must be as many as references, got {len(hypotheses)} and {len(references)}"
        )
    found, possible = [0] * LONGEST, [0] * LONGEST
    length = reference_length = 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        words, expected = tokens(hypothesis), tokens(reference)
        length, reference_length = length + len(words), reference_length + len(expected)
        for n in range(1, LONGEST + 1):
            grams = ngrams(words, n)
            found[n - 1] += (grams & ngrams(expected, n)).total()
            possible[n - 1] += grams.total()
    if not all(found):
        return 0.0
    precision = sum(math.log(x / y) for x, y in zip(found, possible, strict=True)) / LONGEST
    return 100 * math.exp(min(0.0, 1 - reference_length / length) + precision)
