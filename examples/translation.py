"""Translation of Django's messages: sentences as ids, batches, BLEU, for every model."""

from __future__ import annotations

import random
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .bleu import bleu
from .bpe import END, PAD, START, Vocabulary
from .data import catalogues
from .options import Options, common, parser
from .progress import announce
from .quality import NO_BACKEND, Quality, report
from .training import Training, random_numbers, shuffled

PLACEHOLDER = re.compile(r"%\(\w+\)\w|%\w|\{\w*\}")
FIRST_NUMBER = 0xE000  # letters of private use stand for the first, second, ... placeholder
BATCH = 64
DROPOUT = 0.1  # of merges, in training
LONGEST = 40  # pieces of a sentence that is trained on
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
        source, target: language codes.
        size: of the vocabulary.
    """

    def __init__(self, source: str, target: str, size: int = 1000) -> None:
        self.train, self.validation = catalogues.load(source, target)
        announce(f"learning a vocabulary of {size} pieces")
        columns = zip(*map(self.numbered_pair, *self.train), strict=True)
        self.sources, self.targets = map(list, columns)
        self.vocabulary = Vocabulary(self.sources + self.targets, size)
        short = [
            i
            for i, pair in enumerate(zip(self.sources, self.targets, strict=True))
            if max(len(self.vocabulary.encode(x)) for x in pair) <= LONGEST
        ]
        self.sources, self.targets = ([x[i] for i in short] for x in (self.sources, self.targets))

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
            "the most frequent sentence": bleu(
                [self.most_frequent()] * len(references), references
            ),
        }


def print_samples(corpus: Corpus, found: list[str], options: Options, count: int = 12) -> None:
    """Some translations on the screen, all of them in translations.tsv."""
    rows = list(zip(corpus.validation.source, found, corpus.validation.target, strict=True))
    for source, translated, reference in rows[:: max(1, len(rows) // count)]:
        print(f"  {source}\n    model:     {translated}\n    reference: {reference}")
    lines = ["source\tmodel\treference", *("\t".join(row) for row in rows)]
    (options.out / "translations.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train_translator(
    name: str,
    description: str,
    make: Callable[[int, Namespace], nn.Module],
    arguments: list[str] | None,
    *,
    target: str,
    steps: int,
    stated: float,
    learning_rate: float,
    look: Callable[[nn.Module, Corpus, Options], Any] | None = None,
    extend: Callable[[ArgumentParser], Any] | None = None,
    has_backend: Callable[[Namespace], bool] = lambda given: True,
) -> None:
    """The whole example for a model with `loss(source, target)` and `translate(source)`.

    Args:
        make: the model for a vocabulary of this size and the parsed command line.
        target: the language that is translated to by default.
        stated: the BLEU that is promised.
        look: saves more samples of the trained model.
        extend: adds options of the example's own.
        has_backend: whether the model has attention of this library.
    """
    made = parser(name, description, steps)
    made.add_argument("--source", default="en", help="language code (default: %(default)s)")
    made.add_argument("--target", default=target, help="language code (default: %(default)s)")
    if extend is not None:
        extend(made)
    given = made.parse_args(arguments)
    options = common(given)
    corpus = Corpus(given.source, given.target)
    model, device = make(len(corpus.vocabulary), given), options.device
    checked = corpus.validation_batch()
    trained = Training(
        options,
        name,
        model,
        batch=lambda step: corpus.batch(BATCH, options.seed, step),
        loss=lambda batch: model.loss(*(x.to(device) for x in batch)),
        validate=lambda: model.loss(*(x.to(device) for x in checked)),
        config={"model": model.config.to_dict(), "languages": [given.source, given.target]},
        learning_rate=learning_rate,
        weight_decay=0.01,
    ).run()

    def search(ids: Tensor) -> Tensor:
        return model.translate(ids.to(device), beams=4, steps=LONGEST + 20)

    announce(f"translating {len(corpus.validation.source)} sentences")
    found = corpus.translate(search, corpus.validation.source)
    print_samples(corpus, found, options)
    if look is not None:
        look(model, corpus, options)
    value, baselines = bleu(found, corpus.validation.target), corpus.baselines()
    qualities = [
        Quality("BLEU of validation sentences", value, rival, figure, stated, higher_is_better=True)
        for rival, figure in baselines.items()
    ]
    more = {} if has_backend(given) else {"backend": NO_BACKEND}
    report(options, qualities, trained.seconds, languages=[given.source, given.target], **more)
