"""What a network's outputs at one position mean: the distribution of the tokens drawn there.

Shapes: ``*`` any leading shape, O outputs of the network at one position, G tokens drawn there, V vocabulary,
M components of a mixture. Log-probabilities in nats.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kinfolk.contract import DataSpec
from kinfolk_families._shared.discretised import discretised_logistic_log_prob
from kinfolk_families.autoregressive.config import MixtureConfig, OutputConfig
from kinfolk_families.autoregressive.tokens import Tokeniser


class Distribution(Protocol):
    """The distribution of the G tokens at one position."""

    @property
    def outputs(self) -> int:
        """O, the numbers it is made from."""

    def bias(self) -> Tensor:
        """Where an untrained network's outputs shall lie. -> (O,)"""

    def log_prob(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """log p of all tokens at a position. (*, O), (*, G) -> (*)"""

    def choices(self, outputs: Tensor, tokens: Tensor, place: int) -> Tensor:
        """log p of each token that could stand at ``place``, given ``tokens`` before it. (R, O), (R, G) -> (R, V)"""


class Bernoulli:
    """On or off; one output, the logit of on."""

    outputs = 1

    def bias(self) -> Tensor:
        """As likely on as off. -> (1,)"""
        return torch.zeros(1)

    def log_prob(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """(*, 1), (*, 1) -> (*)"""
        return -F.binary_cross_entropy_with_logits(outputs, tokens.to(outputs.dtype), reduction="none").squeeze(-1)

    def choices(self, outputs: Tensor, tokens: Tensor, place: int) -> Tensor:  # noqa: ARG002
        """(R, 1) -> (R, 2)"""
        return -F.softplus(torch.cat([outputs, -outputs], -1))


class Categorical:
    """Any of V tokens; one output each, its logit."""

    def __init__(self, vocabulary: int) -> None:
        self.outputs = vocabulary

    def bias(self) -> Tensor:
        """All equally likely. -> (V,)"""
        return torch.zeros(self.outputs)

    def log_prob(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """(*, V), (*, 1) -> (*)"""
        flat = F.cross_entropy(outputs.flatten(0, -2), tokens.flatten(), reduction="none")
        return -flat.view(outputs.shape[:-1])

    def choices(self, outputs: Tensor, tokens: Tensor, place: int) -> Tensor:  # noqa: ARG002
        """(R, V) -> (R, V)"""
        return outputs.log_softmax(-1)


class Components(NamedTuple):
    """A mixture of logistics at one position, before channels are coupled."""

    weight: Tensor  # (*, M) log-probability of each component
    mean: Tensor  # (*, G, M)
    log_scale: Tensor  # (*, G, M)
    coupling: Tensor  # (*, G (G - 1) / 2, M) what an earlier channel adds to the mean of a later one


class Mixture:
    """Mixture of discretised logistics over levels; a component draws all channels, each moved by those before it.

    Source: Salimans et al., 2017 (PixelCNN++), sections 2.1 and 2.2, https://arxiv.org/abs/1701.05517.
    """

    def __init__(self, config: MixtureConfig, spec: DataSpec, group: int) -> None:
        assert spec.levels is not None
        self.components, self.min_log_scale = config.components, config.min_log_scale
        self.spec, self.levels, self.group = spec, spec.levels, group
        self.couplings = group * (group - 1) // 2
        self.outputs = (1 + 2 * group + self.couplings) * self.components

    def bias(self) -> Tensor:
        """Components in a row over the range of the data, each as wide as its share of it. -> (O,)"""
        blocks = torch.zeros(1 + 2 * self.group + self.couplings, self.components)
        blocks[1 : 1 + self.group] = torch.linspace(-1, 1, self.components) if self.components > 1 else 0
        blocks[1 + self.group : 1 + 2 * self.group] = torch.tensor(1 / self.components).log()
        return blocks.flatten()

    def split(self, outputs: Tensor) -> Components:
        """(*, O) -> the components"""
        blocks = outputs.unflatten(-1, (-1, self.components))
        weight, mean, log_scale, coupling = blocks.split([1, self.group, self.group, self.couplings], -2)
        return Components(
            weight.squeeze(-2).log_softmax(-1), mean, log_scale.clamp(min=self.min_log_scale), coupling.tanh()
        )

    def log_prob(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """(*, O), (*, G) -> (*)"""
        return self._joint(self.split(outputs), tokens, self.group).logsumexp(-1)

    def choices(self, outputs: Tensor, tokens: Tensor, place: int) -> Tensor:
        """(R, O), (R, G) -> (R, V)"""
        components = self.split(outputs)
        before = self._joint(components, tokens, place)  # (R, M)
        x = self.spec.from_levels(torch.arange(self.levels, device=outputs.device))[:, None]  # (V, 1)
        masses = self._masses(components, tokens, place, x)  # (R, V, M)
        return (before[:, None] + masses).logsumexp(-1).log_softmax(-1)

    def _joint(self, components: Components, tokens: Tensor, places: int) -> Tensor:
        """log p of each component and the first ``places`` tokens. (*, G) -> (*, M)"""
        total = components.weight
        for place in range(places):
            x = self.spec.from_levels(tokens[..., place, None, None])  # (*, 1, 1)
            total = total + self._masses(components, tokens, place, x).squeeze(-2)
        return total

    def _masses(self, components: Components, tokens: Tensor, place: int, x: Tensor) -> Tensor:
        """log mass of the bin at each x (*, N, 1) under each component, given the tokens before. -> (*, N, M)"""
        mean = components.mean[..., place, :]
        first = place * (place - 1) // 2
        for earlier in range(place):  # PixelCNN++, eq. 3
            mean = mean + components.coupling[..., first + earlier, :] * self.spec.from_levels(
                tokens[..., earlier, None]
            )
        scale = components.log_scale[..., place, :]
        return discretised_logistic_log_prob(mean[..., None, :], scale[..., None, :], x, self.levels)


def make_distribution(config: OutputConfig, tokeniser: Tokeniser) -> Distribution:
    """The distribution that ``config`` asks for, of the tokens at one position."""
    if isinstance(config, MixtureConfig):
        return Mixture(config, tokeniser.spec, tokeniser.group)
    return Bernoulli() if config.kind == "bernoulli" else Categorical(tokeniser.vocabulary)
