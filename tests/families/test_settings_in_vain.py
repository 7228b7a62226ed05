"""Settings that others leave without effect, family by family: refused with what they are for, and else accepted."""

import pytest

from kinfolk.config import parse
from kinfolk.errors import ConfigError
from kinfolk.families import find_family

ECT = {"kind": "ect"}
GIVEN = {"kind": "composed", "weights": {"first": 1.0}}
NUMBERS = ("input_noise", "energy_l2", "energy_limit", "gap_limit")
TRAINED = {"buffer": {"size": 9}, "loss": "difference", **dict.fromkeys(NUMBERS, 9)}
CASES = [
    ("autoencoder", {"objective": {"kind": "iwae", "draws": 1, "growth_samples": 9}}, "objective.draws", 2),
    ("autoencoder", {"objective": {"kind": "denoising"}, "sampler": {"temperature": 0.5}}, "objective.kind", "elbo"),
    ("gan", {"embedding": 8}, "conditional", True),
    ("gan", {"augmentation": {"ramp_samples": 9}}, "augmentation.target", 0.6),
    ("gan", {"path_length": {}}, "generator", {"kind": "stylegan2"}),
    ("consistency", {"objective": {**ECT, "k": 0, "b": 2}}, "objective.k", 1),
    ("consistency", {"objective": {**ECT, "stages": 1, "stage_samples": 9}}, "objective.stages", 2),
    *(("energy", {"system": {**GIVEN, name: TRAINED[name]}}, "system.learn_weights", True) for name in TRAINED),
    ("autoencoder", {"optimizer": {"final_lr": 1e-5}}, "optimizer.decay_samples", 100),
    ("flow", {"optimizer": {"kind": "sgd", "eps": 1e-6}}, "optimizer.kind", "adam"),
]


def with_setting(values, path, value):
    first, _, rest = path.partition(".")
    return {**values, first: with_setting(values.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(("family", "values", "path", "value"), CASES)
def test_a_setting_in_vain_is_refused_until_what_it_is_for_is_there(family, values, path, value):
    config, purpose = find_family(family).config, path.rpartition(".")[2]
    with pytest.raises(ConfigError, match=rf"would have no effect: it is for [a-z.]*{purpose}"):
        parse(config, values, "model")
    parse(config, with_setting(values, path, value), "model")
