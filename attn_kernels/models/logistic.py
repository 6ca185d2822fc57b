"""Discretised mixtures of logistics: a distribution of whole pixels (Salimans et al. 2017).

A pixel has C channels of `levels` values, scaled to x in [-1, 1]. Mixture m has a weight, and for
each channel a mean, a scale, and coefficients of the channels before it (arXiv 1701.05517, 2.2):

    p(x) = sum_m pi_m prod_c P(x_c | mu_mc + sum_{c' < c} a_mcc' x_c', s_mc)
    P(x | mu, s) = sigmoid((x + h - mu) / s) - sigmoid((x - h - mu) / s),      h = 1 / (levels - 1)

where the outermost values reach to infinity. The difference is computed exactly, as
sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): PixelCNN++'s code takes the
density at the middle instead where the difference is small.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_LOG_SCALE = -7.0  # PixelCNN++'s bound


def parameter_count(channels: int, mixtures: int) -> int:
    """How many numbers describe one pixel's distribution: 100 for RGB and 10 mixtures."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


class Mixture(NamedTuple):
    """weights (logits) [..., M]; means and log_scales [..., C, M]; coefficients [..., pairs, M] in
    the order (1, 0), (2, 0), (2, 1), ... of (channel, channel before it)."""

    weights: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor


def split(parameters: Tensor, channels: int) -> Mixture:
    """parameters [..., P] as a mixture; coefficients pass through tanh."""
    pairs = channels * (channels - 1) // 2
    mixtures = parameters.shape[-1] // (1 + 2 * channels + pairs)
    parts = parameters.unflatten(-1, (-1, mixtures))
    weights, means, log_scales, coefficients = parts.split([1, channels, channels, pairs], -2)
    log_scales = log_scales.clamp(min=LEAST_LOG_SCALE)
    return Mixture(weights.squeeze(-2), means, log_scales, torch.tanh(coefficients))


def channel_mean(mixture: Mixture, x: Tensor, channel: int) -> Tensor:
    """The mean [..., M] of a channel, given the channels of x [..., C] before it."""
    first = channel * (channel - 1) // 2
    before = mixture.coefficients[..., first : first + channel, :]
    return mixture.means[..., channel, :] + (before * x[..., :channel, None]).sum(-2)


def scaled(pixels: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Values 0 .. levels - 1 as x in [-1, 1]."""
    return pixels.to(dtype) * (2 / (levels - 1)) - 1


def log_probability(parameters: Tensor, pixels: Tensor, levels: int) -> Tensor:
    """log p [...] of pixels [..., C] int64 under parameters [..., P]."""
    channels, half = pixels.shape[-1], 1 / (levels - 1)
    mixture = split(parameters, channels)
    x = scaled(pixels, levels, parameters.dtype)
    total = mixture.weights.log_softmax(-1)
    for channel in range(channels):
        value = pixels[..., channel, None]
        rate = torch.exp(-mixture.log_scales[..., channel, :])
        centred = x[..., channel, None] - channel_mean(mixture, x, channel)
        upper, lower = (centred + half) * rate, (centred - half) * rate
        below = torch.where(value == levels - 1, 0.0, F.logsigmoid(upper))
        above = torch.where(value == 0, 0.0, F.logsigmoid(-lower))
        inner = (value > 0) & (value < levels - 1)
        between = torch.where(inner, torch.log(-torch.expm1(-2 * half * rate)), 0.0)
        total = total + below + above + between
    return torch.logsumexp(total, -1)


def draw(
    parameters: Tensor,
    channels: int,
    levels: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pixels [N, C] int64 from parameters [N, P], exactly distributed at temperature 1. It divides
    the mixtures' logits and multiplies the scales; 0 takes the likeliest mixture's means."""
    mixture = split(parameters, channels)
    count, like = len(parameters), {"dtype": parameters.dtype, "device": parameters.device}
    noise = torch.rand(count, 1 + channels, generator=generator, **like)
    if temperature == 0:
        chosen = mixture.weights.argmax(-1, keepdim=True)
    else:
        cumulated = (mixture.weights / temperature).softmax(-1).cumsum(-1)
        chosen = (cumulated < noise[:, :1]).sum(-1, keepdim=True)
        chosen = chosen.clamp(max=mixture.weights.shape[1] - 1)  # the sum may round below 1
    pixels = torch.zeros(count, channels, dtype=torch.int64, device=parameters.device)
    for channel in range(channels):
        mean = channel_mean(mixture, scaled(pixels, levels, parameters.dtype), channel)
        scale = temperature * torch.exp(mixture.log_scales[:, channel])
        value = (mean + scale * torch.logit(noise[:, 1 + channel, None], 1e-7)).gather(1, chosen)
        level = ((value + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1)
        pixels[:, channel] = level.squeeze(1).to(torch.int64)
    return pixels
