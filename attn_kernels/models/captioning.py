"""Image captioning with attention over a convolutional grid (Xu et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attn_kernels.nn.checks import check_counts, check_fraction, check_tensor

from .config import Config
from .recurrent import RecurrentDecoder, check_special_ids
from .recurrent_attention import AdditiveAttention
from .tokens import lengths_of
from .training import smoothed_cross_entropy


@dataclass(frozen=True)
class CaptionConfig(Config):
    """Sizes of Show, Attend and Tell.

    stages are the network's (channels, convolutions), halved by pooling from one to the next. The
    presets are the paper's: annotations of VGG-19 before its last pooling, 14 x 14 x 512 of 224 x
    224 pixels, and the sizes of its published code for MS COCO.
    """

    vocab: int
    image: tuple[int, int] = (224, 224)
    image_channels: int = 3
    stages: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
    embed_dim: int = 512
    hidden_dim: int = 1800
    align_dim: int = 512
    dropout: float = 0.5
    coverage: float = 1.0
    pad: int = 0
    start: int = 1
    end: int = 2

    presets: ClassVar = {
        "show-attend-tell": {"vocab": 10_000},
        "small": {
            "vocab": 1024,
            "image": (32, 32),
            "stages": ((32, 1), (64, 1), (128, 1)),
            "embed_dim": 64,
            "hidden_dim": 128,
            "align_dim": 64,
            "dropout": 0.1,
        },
    }

    def __post_init__(self) -> None:
        check_counts(self, "vocab", "image_channels", "embed_dim", "hidden_dim", "align_dim")
        check_special_ids(self, self.vocab)
        check_fraction("CaptionConfig: dropout", self.dropout)
        if not self.stages:
            raise ValueError("CaptionConfig: stages must have at least one entry, got none")
        if min(self.grid) < 1:
            raise ValueError(
                f"CaptionConfig: image must leave a grid behind {len(self.stages) - 1} poolings,"
                f" got {self.image}"
            )
        if self.coverage < 0:
            raise ValueError(f"CaptionConfig: coverage must be at least 0, got {self.coverage}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the annotations."""
        factor = 2 ** (len(self.stages) - 1)
        return self.image[0] // factor, self.image[1] // factor


class RectifiedConvolution(nn.Conv2d):
    """A convolution in front of a ReLU: He's initialisation; the bias zero."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


def grid_network(channels: int, stages: tuple[tuple[int, int], ...]) -> nn.Sequential:
    """VGG's plan: 3 x 3 convolutions with ReLU, 2 x 2 maximum pooling between the stages."""
    layers: list[nn.Module] = []
    for stage, (width, convolutions) in enumerate(stages):
        if stage:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [RectifiedConvolution(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


class CaptionState(NamedTuple):
    """h and c [B, n]; the annotations a [B, cells, D], W_a a [B, cells, align]; and the weights
    alpha [B, cells] of the last step."""

    hidden: Tensor
    cell: Tensor
    memory: Tensor
    keys: Tensor
    weights: Tensor


class CaptionModel(RecurrentDecoder):
    """Show, Attend and Tell with soft attention (Xu et al. 2015, arXiv 1502.03044).

        a = CNN(image), one annotation per cell of its grid;  h_0, c_0 = tanh(W mean_i a_i + b)
        alpha_t = softmax_i(v . tanh(W_a a_i + W_d h_{t-1} + b))          section 3.1.2
        z_t     = beta_t sum_i alpha_ti a_i,  beta_t = sigmoid(w . h_{t-1} + b)   section 4.2.1
        h_t     = LSTM([E y_{t-1}; z_t], h_{t-1})
        p(y_t)  = softmax(L_o (E y_{t-1} + L_h h_t + L_z z_t))            equation 7
        loss    = -log p(y) + coverage * sum_i (1 - sum_t alpha_ti)^2     equation 14

    beta is one number per step, as in the paper; a popular PyTorch port has one per channel, ReLU
    instead of tanh, and reads out of h alone. The published code averages the last term over cells
    and sums it over the batch; here it is summed over cells and averaged over the batch, as the
    equation says, and steps that predict padding do not count. The network learns with the rest
    unless its parameters are frozen. Hard attention is not here. The attention is additive, so
    `backend` changes nothing: see `AdditiveAttention`.
    """

    def __init__(self, config: CaptionConfig, backend: str | None = None) -> None:
        super().__init__(config, config.vocab, config.embed_dim, backend)
        embed, hidden, annotation = config.embed_dim, config.hidden_dim, config.stages[-1][0]
        self.network = grid_network(config.image_channels, config.stages)
        self.initial = nn.Linear(annotation, 2 * hidden)
        self.attention = AdditiveAttention(hidden, annotation, config.align_dim)
        self.gate = nn.Linear(hidden, 1)
        self.lstm = nn.LSTMCell(embed + annotation, hidden)
        self.deep = nn.Linear(hidden + annotation, embed)  # L_h and L_z
        self.output = nn.Linear(embed, config.vocab)
        self.dropout = nn.Dropout(config.dropout)

    def first_state(self, source: Tensor) -> CaptionState:
        c = self.config
        check_tensor("images", source, ("batch", "channels", "rows", "cols"))
        expected = (c.image_channels, *c.image)
        if source.shape[1:] != expected:
            raise ValueError(
                f"images must have shape [batch, {', '.join(map(str, expected))}],"
                f" got {list(source.shape)}"
            )
        memory = self.network(source).flatten(2).mT
        hidden, cell = torch.tanh(self.initial(memory.mean(1))).chunk(2, -1)
        weights = memory.new_zeros(memory.shape[:2])
        return CaptionState(hidden, cell, memory, self.attention.keys(memory), weights)

    def advance(self, embedded: Tensor, state: CaptionState) -> tuple[Tensor, CaptionState]:
        hidden, cell, memory, keys, _ = state
        weights = self.attention.weights(hidden.unsqueeze(1), keys)
        context = torch.sigmoid(self.gate(hidden)) * (weights @ memory).squeeze(1)
        hidden, cell = self.lstm(torch.cat([embedded, context], -1), (hidden, cell))
        features = embedded + self.deep(self.dropout(torch.cat([hidden, context], -1)))
        return features, CaptionState(hidden, cell, memory, keys, weights.squeeze(1))

    def readout(self, features: Tensor) -> Tensor:
        return self.output(self.dropout(features))

    def unroll(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, vocab] of what follows each word of captions [B, T], and the attention
        weights [B, T, cells] with which they were made."""
        embedded = self.embed_target(images, captions)
        state, features, weights = self.first_state(images), [], []
        for each in embedded.unbind(1):
            feature, state = self.advance(each, state)
            features.append(feature)
            weights.append(state.weights)
        return self.readout(torch.stack(features, 1)), torch.stack(weights, 1)

    def loss(self, images: Tensor, captions: Tensor) -> Tensor:
        """Per caption, averaged over the batch: the sum over its words and the coverage term.
        Captions [B, T] begin with config.start, finish with config.end, and are padded."""
        lengths_of("captions", captions, self.config.pad)
        logits, weights = self.unroll(images, captions[:, :-1])
        words = captions[:, 1:]
        real = words != self.config.pad
        covered = (weights * real.unsqueeze(-1)).sum(1)  # [B, cells]
        uneven = (1 - covered).square().sum(1).mean()
        per_word = smoothed_cross_entropy(logits, words, ignore=self.config.pad)
        return per_word * real.sum() / len(words) + self.config.coverage * uneven

    def caption(
        self, images: Tensor, *, beams: int = 4, alpha: float = 0.0, steps: int = 20
    ) -> Tensor:
        """The best captions found: `search` over images [B, channels, rows, cols]."""
        return self.search(images, beams=beams, alpha=alpha, steps=steps)

    @torch.no_grad()
    def attention_maps(self, images: Tensor, captions: Tensor) -> Tensor:
        """Where the model looked for what follows each word of captions [B, T]: [B, T, rows, cols]
        of the annotations' grid, each a distribution."""
        _, weights = self.unroll(images, captions)
        return weights.unflatten(-1, self.config.grid)
