"""Latents of discrete codes: a codebook that follows the encoder, and a fixed grid that needs none.

Shapes: B batch, Z channels, ``g`` the grid (h, w), N tokens of a batch, K codes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinfolk.contract import Progress
from kinfolk_families.autoencoder.config import FiniteScalarConfig, VectorQuantisedConfig

EPSILON = 1e-5  # of Laplace smoothing, in tokens: van den Oord et al., 2017, in Sonnet's VectorQuantizerEMA
BOUND_MARGIN = 1e-3  # keeps tanh off the outermost edges: Mentzer et al., 2024, appendix A.1
KMEANS_ROUNDS = 10


class Quantised(NamedTuple):
    """Encoder outputs, the codes they became and which codes these are."""

    z: Tensor  # (B, Z, g)
    codes: Tensor  # (B, Z, g)
    tokens: Tensor  # (B, g) int64 in [0, K)

    def straight_through(self) -> Tensor:
        """The codes, with the gradient of z: rounding is taken for the identity. -> (B, Z, g)

        Source: Bengio et al., 2013, https://arxiv.org/abs/1308.3432.
        """
        return self.z + (self.codes - self.z).detach()


def code_use(tokens: Tensor, codes: int) -> dict[str, Tensor]:
    """Share of the codes that occur at all, and the perplexity: how many codes as even use would have. (*) int64"""
    share = torch.bincount(tokens.flatten(), minlength=codes) / tokens.numel()  # (K,)
    return {"usage": (share > 0).float().mean(), "perplexity": torch.special.entr(share).sum().exp()}


class Quantiser(nn.Module):
    """K codes of Z elements, and which of them each encoder output becomes."""

    levels: int  # K

    def assign(self, z: Tensor) -> Tensor:
        """The code of each encoder output. (N, Z) -> (N,) int64"""
        raise NotImplementedError

    def lookup(self, tokens: Tensor) -> Tensor:
        """The codes that tokens stand for. (*) int64 -> (*, Z)"""
        raise NotImplementedError

    def forward(self, z: Tensor) -> Quantised:
        """(B, Z, g) -> codes and tokens"""
        channels_last = z.movedim(1, -1)  # (B, g, Z)
        tokens = self.assign(channels_last.flatten(0, -2)).view(channels_last.shape[:-1])
        return Quantised(z, self.lookup(tokens).movedim(-1, 1), tokens)


class Codebook(Quantiser):
    """Codes that are the mean of the encoder outputs assigned to them, over steps of late.

    Counts and sums of outputs are moving averages. Both start at zero and are debiased by ``weight``, the average of
    ones; Laplace smoothing enters the division alone. A code that too few outputs are assigned to is dead, and starts
    again at an output far from its own code. Sources: van den Oord et al., 2017, appendix A.1,
    https://arxiv.org/abs/1711.00937; restarts: Dhariwal et al., 2020 (Jukebox), https://arxiv.org/abs/2005.00341.
    """

    counts: Tensor  # (K,) tokens a step, averaged
    sums: Tensor  # (K, Z) outputs a step, averaged
    weight: Tensor  # () how much the averages have seen, 1 in the long run
    step_counts: Tensor  # (K,) of this step so far
    step_sums: Tensor  # (K, Z)
    step_samples: Tensor  # ()
    candidates: Tensor  # (K, Z) outputs at which codes would start again

    def __init__(self, config: VectorQuantisedConfig, channels: int) -> None:
        super().__init__()
        self.config, self.levels = config, config.codes
        self.register_buffer("counts", torch.ones(config.codes))
        self.register_buffer("sums", torch.randn(config.codes, channels))  # until ``initialise``
        self.register_buffer("weight", torch.ones(()))
        self.register_buffer("step_counts", torch.zeros(config.codes))
        self.register_buffer("step_sums", torch.zeros(config.codes, channels))
        self.register_buffer("step_samples", torch.zeros(()))
        self.register_buffer("candidates", torch.zeros(config.codes, channels))

    @property
    def vectors(self) -> Tensor:
        """(K, Z)"""
        counts = self.counts / self.weight
        total = counts.sum()
        smoothed = (counts + EPSILON) / (total + self.levels * EPSILON) * total
        return self.sums / self.weight / smoothed[:, None]

    def assign(self, z: Tensor) -> Tensor:
        """The nearest code of each output. (N, Z) -> (N,) int64"""
        vectors = self.vectors
        with torch.autocast(z.device.type, enabled=False):  # neighbours differ by less than bfloat16 can tell
            return torch.addmm(vectors.square().sum(1), z, vectors.T, alpha=-2).argmin(1)  # |z - e|^2 - |z|^2

    def lookup(self, tokens: Tensor) -> Tensor:
        """(*) int64 -> (*, Z)"""
        return self.vectors[tokens]

    @torch.no_grad()
    def record(self, quantised: Quantised, generator: torch.Generator) -> None:
        """Add up a microbatch, and draw where dead codes would start again."""
        z, codes = (values.movedim(1, -1).flatten(0, -2) for values in (quantised.z, quantised.codes))  # (N, Z)
        tokens = quantised.tokens.flatten()
        self.step_counts += torch.bincount(tokens, minlength=self.levels)
        self.step_sums.index_add_(0, tokens, z)
        self.step_samples += len(quantised.z)
        self.candidates.copy_(z[_far_outputs(z, codes, self.levels, generator)])

    def after(self, progress: Progress) -> None:
        """Move the averages by the step's counts and sums, then start dead codes again."""
        counts, sums, samples, candidates = self._gather(progress)
        new = 1 - 0.5 ** (samples / self.config.halflife_samples)
        self._average(counts, sums, new)
        self._restart(candidates, counts.sum() / self.levels)

    def initialise(self, quantised: Quantised, progress: Progress) -> None:
        """K-means over a first batch; it then weighs as much as one step. Codes draw new starts where they are empty.

        Source: Arthur and Vassilvitskii, 2007 (k-means++), for the starts.
        """
        for _ in range(KMEANS_ROUNDS):
            self.record(self(quantised.z), progress.generator)
            counts, sums, samples, candidates = self._gather(progress)
            self._average(counts, sums, torch.ones_like(samples))
            self._restart(candidates, counts.sum() / self.levels)
        new = 1 - 0.5 ** (samples / self.config.halflife_samples)
        for average in (self.counts, self.sums, self.weight):
            average.mul_(new)

    def _gather(self, progress: Progress) -> Sequence[Tensor]:
        """Counts, sums and samples of the step over all workers; code k may start where one of them says."""
        lender = (torch.arange(self.levels, device=self.counts.device) + progress.step) % progress.workers
        mine = (lender == progress.rank)[:, None]
        parts = [self.step_counts, self.step_sums, self.step_samples, self.candidates * mine]
        flat = progress.all_reduce(torch.cat([part.flatten() for part in parts]))
        for part in (self.step_counts, self.step_sums, self.step_samples, self.candidates):
            part.zero_()
        pieces = flat.split([part.numel() for part in parts])
        return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]

    def _average(self, counts: Tensor, sums: Tensor, new: Tensor) -> None:
        self.counts.lerp_(counts, new)
        self.sums.lerp_(sums, new)
        self.weight.lerp_(torch.ones_like(self.weight), new)

    def _restart(self, candidates: Tensor, fair: Tensor) -> None:
        """Dead codes stand at their candidates, with a fair share of the step's tokens to their name.

        A code with half of a fair share lives, so a batch of few tokens does not kill every code.
        """
        dead = self.counts < self.weight * torch.clamp(fair / 2, max=self.config.restart_below)
        share = fair * self.weight
        self.counts.copy_(torch.where(dead, share, self.counts))
        self.sums.copy_(torch.where(dead[:, None], share * candidates, self.sums))


def _far_outputs(z: Tensor, codes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions of ``count`` outputs, drawn with probability by their squared distance to their code. -> (count,)

    Source: Arthur and Vassilvitskii, 2007 (k-means++): equal outputs, such as those of blank patches, are taken once.
    """
    distance = (z - codes).square().sum(1).nan_to_num(0.0, posinf=0.0)  # (N,); the step finds what is not finite
    return torch.multinomial(distance + 1e-12, count, replacement=True, generator=generator)  # all may be zero


class FiniteScalar(Quantiser):
    """Each channel bounded and rounded to its own few levels; a token counts through their combinations.

    Source: Mentzer et al., 2024 (FSQ), appendix A.1, https://arxiv.org/abs/2309.15505.
    """

    sizes: Tensor  # (Z,) int64, levels of each channel
    strides: Tensor  # (Z,) int64, tokens between neighbouring levels of each channel

    def __init__(self, config: FiniteScalarConfig) -> None:
        super().__init__()
        sizes = torch.tensor(config.levels)
        self.levels = int(sizes.prod())
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("strides", sizes.cumprod(0) // sizes, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Each channel squeezed so that rounding it gives its own number of integers, around zero. (*, Z) -> (*, Z)"""
        reach = (self.sizes - 1) * (1 + BOUND_MARGIN) / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)  # an even number of integers lies askew
        return (z + (offset / reach).atanh()).tanh() * reach - offset

    def assign(self, z: Tensor) -> Tensor:
        """(N, Z) -> (N,) int64"""
        bounded = self.bound(z).nan_to_num()  # NaN would be a token below zero; the step finds it in the loss
        return ((bounded.round().long() + self.sizes // 2) * self.strides).sum(-1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codes in [-1, 1]. (*) int64 -> (*, Z)"""
        half = self.sizes // 2
        return ((tokens[..., None] // self.strides) % self.sizes - half) / half

    def forward(self, z: Tensor) -> Quantised:
        """The bounded outputs, on the scale of the codes, and their codes. (B, Z, g)"""
        tokens = super().forward(z).tokens
        bounded = (self.bound(z.movedim(1, -1)) / (self.sizes // 2)).movedim(-1, 1)
        return Quantised(bounded, self.lookup(tokens).movedim(-1, 1), tokens)
