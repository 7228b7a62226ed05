"""A family as a third party would ship it: noise around a learned centre, in as many calls as asked."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from kinfolk.contract import Config, DataSpec, Family, Model, Phase, SampleRequest, SamplerState, Tasks
from kinfolk.rng import row_normal


class ToyConfig(Config):
    centre: float = 0.0


class ToyOptions(Config):
    steps: int = Field(1, ge=1, le=10)


class Toy(nn.Module):
    def __init__(self, config: ToyConfig, spec: DataSpec) -> None:
        super().__init__()
        self.shape = spec.shape
        self.weight = nn.Parameter(config.centre + torch.rand(*spec.shape))


def build(config: ToyConfig, spec: DataSpec, parents: Mapping[str, Model]) -> Toy:
    return Toy(config, spec)


def phases(module: Toy) -> list[Phase]:
    return []


def tasks(module: Toy) -> Tasks:
    def start(request: SampleRequest) -> SamplerState:
        x = row_normal(request.seeds, torch.zeros_like(request.seeds), module.shape) + module.weight
        if request.label is not None:
            x = x + request.label.reshape(-1, *[1] * len(module.shape))
        return SamplerState.start(x, request, request.options.steps)

    def advance(state: SamplerState) -> SamplerState:
        return state.step(state.x * 0.5)

    def render(state: SamplerState) -> Tensor:
        return state.x

    return Tasks(
        options=ToyOptions(),
        starts={"sample": start},
        advance=advance,
        render=render,
        conditions=frozenset({"label"}),
    )


FAMILY = Family("toy", frozenset({"image"}), ToyConfig, ToyOptions, build, phases, tasks)
