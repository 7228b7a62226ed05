import pytest

from kinfolk.config import override
from kinfolk.dotted import value_at, with_value
from kinfolk.errors import ConfigError

RECIPE = {"model": {"penalties": [{"kind": "r1", "gamma": 1.0}, {"kind": "r2"}], "latent": 8}, "seed": 0}


def test_a_setting_reaches_into_mappings_and_lists_and_leaves_what_was_given():
    changed = override(RECIPE, ["model.penalties.0.gamma=3", "model.generator.kind=mlp", "seed=[1, 2]"])
    assert changed["model"]["penalties"] == [{"kind": "r1", "gamma": 3}, {"kind": "r2"}]
    assert changed["model"]["generator"] == {"kind": "mlp"}
    assert changed["model"]["latent"] == 8
    assert changed["seed"] == [1, 2]
    assert RECIPE["model"]["penalties"][0]["gamma"] == 1.0
    assert "generator" not in RECIPE["model"]


def test_what_was_put_is_what_is_read():
    assert value_at(with_value(RECIPE, "model.penalties.1.gamma", 0.5), "model.penalties.1.gamma") == 0.5
    assert value_at(RECIPE, "model.penalties.1") == {"kind": "r2"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.latent.size=3", "plain value, 8, where 'size'"),
        ("model.penalties.2.gamma=3", "'2' is no position in a list of 2"),
        ("model.penalties.first=3", "'first' is no position in a list of 2"),
        ("model.latent={", "no YAML value"),
        ("model.latent", "takes key=value"),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        override(RECIPE, [setting])


def test_reading_what_is_not_there_names_the_nearest_key():
    with pytest.raises(ConfigError, match=r"no key 'latnt'\. Did you mean 'latent'"):
        value_at(RECIPE, "model.latnt")
