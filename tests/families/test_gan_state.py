"""All that changes in a training is in its checkpoint, with everything in motion: bit-equal after going on."""

import pytest
import torch

from kinfolk.checkpoint import load_checkpoint, save_checkpoint
from kinfolk.config import Training
from kinfolk.step import World
from kinfolk.training.loop import take_step
from kinfolk.training.state import build, prepare
from kinfolk_families.gan import FAMILY
from kinfolk_families.gan.config import GANConfig

STYLE = {"kind": "stylegan2", "width": 8, "max_width": 16}
GROWING = {"kind": "progressive", "width": 8, "max_width": 16}
MOVING = {
    "styles": {
        "generator": {**STYLE, "mixing": 0.9},
        "critic": STYLE,
        "path_length": {"every_steps": 2},
        "augmentation": {"probability": 0.2, "target": 0.6, "ramp_samples": 200},
        "minibatch": {"kind": "deviation", "group": 4},
    },
    "growing": {
        "generator": GROWING,
        "critic": GROWING,
        "growth": {"hold_samples": 16, "fade_samples": 100},
        "spectral": ["generator", "critic"],
        "penalties": [{"kind": "gradient", "gamma": 10.0, "every_steps": 2}],
        "critic_steps": 2,
    },
    "foreseen": {
        "generator": {"kind": "conv", "width": 8},
        "critic": {"kind": "resnet", "width": 8, "attention": 8},
        "spectral": ["critic"],
        "unrolled": {"steps": 2, "group": 8},
        "packing": 2,
        "weight_clip": 0.1,
    },
}
STATE = {
    "styles": ["augmentation.probability", "path_length.mean", "mean_style"],
    "growing": ["generator.network.growth", "critic.network.growth", ".left", ".right"],
    "foreseen": [".left", ".right"],
}
PLAN = Training(samples=96, batch_size=16, accumulate=2, ema_halflife_samples=50)


def started(digits, case, seed):
    config = GANConfig.model_validate({"latent": 6, **MOVING[case]})
    return prepare(build(FAMILY, config, digits.spec, seed), PLAN)


def advance(state, digits, steps):
    for _ in range(steps):
        take_step(state, digits.source("train"), PLAN, 5, World())
    return state


@pytest.mark.parametrize("case", MOVING)
def test_what_moves_is_in_the_checkpoint(case, digits, tmp_path):
    whole = advance(started(digits, case, 1), digits, 3)
    save_checkpoint(tmp_path / "half", whole.snapshot())
    half = whole.snapshot()
    advance(whole, digits, 3)
    resumed = started(digits, case, 99)
    resumed.load(load_checkpoint(tmp_path / "half"))
    advance(resumed, digits, 3)
    ends = [state.snapshot().tensors for state in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    for part in STATE[case]:
        moved = [name for name in ends[0] if part in name and not torch.equal(ends[0][name], half.tensors[name])]
        assert moved, f"{part} stands still"
