"""Networks: every pixel is read and written through every latent, all parameters learn, misfits are refused."""

import pytest
import torch

from kinfolk.config import parse
from kinfolk.contract import Batch, ConfigError, DataSpec, Progress
from kinfolk.training.state import build
from kinfolk_families.autoencoder import FAMILY
from kinfolk_families.autoencoder.config import AutoencoderConfig
from kinfolk_families.autoencoder.networks import beside, make_decoder, make_encoder

IMAGE = DataSpec(kind="image", shape=(3, 8, 12), levels=17, classes=5)
VECTOR = DataSpec(kind="vector", shape=(2,), classes=5)
NETWORKS = [
    {"kind": "conv", "width": 4, "halvings": 2},
    {"kind": "transformer", "patch": 4, "width": 8, "depth": 1, "heads": 2},
    {"kind": "mlp", "width": 8, "depth": 1},
]
OBJECTIVES = [
    {"kind": "reconstruction"},
    {"kind": "elbo", "decoder": {"kind": "bernoulli"}},
    {"kind": "elbo", "decoder": {"kind": "discretised_logistic"}},
    {"kind": "iwae", "decoder": {"kind": "gaussian", "variance": "learned"}, "draws": 3},
    {"kind": "denoising"},
]
SPATIAL = [
    {"kind": "kl_regularised"},
    {"kind": "elbo", "decoder": {"kind": "bernoulli"}},
    {"kind": "vector_quantised", "codes": 5},
    {"kind": "finite_scalar", "levels": [3, 4, 5]},
]


def config_of(**values):
    return parse(AutoencoderConfig, values, "test")


def moved(function, at):
    """How far each output moves with each element of ``at``. (I,) -> (I, *)"""
    return (function(at + torch.eye(len(at))) - function(at[None])).abs()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n["kind"])
def test_every_feature_reads_every_pixel_and_class(network):
    torch.manual_seed(0)
    encoder = make_encoder(config_of(network=network).network, IMAGE, classes=5, features=7)
    x, condition = torch.randn(IMAGE.dims), torch.randn(5)
    assert moved(lambda v: encoder(v.view(-1, 3, 8, 12), condition.expand(len(v), -1)), x).min() > 0
    assert moved(lambda v: encoder(x.view(1, 3, 8, 12).expand(len(v), -1, -1, -1), v), condition).min() > 0


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n["kind"])
def test_every_output_of_every_pixel_is_written_by_every_element_of_the_code(network):
    torch.manual_seed(0)
    decoder = make_decoder(config_of(network=network).network, IMAGE, code=6, outputs=2)
    assert decoder(torch.randn(1, 6)).shape == (1, 2, 3, 8, 12)
    assert moved(decoder, torch.randn(6)).min() > 0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.get("decoder", o)["kind"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n["kind"])
@pytest.mark.parametrize("conditional", [False, True])
def test_every_parameter_learns(network, objective, conditional):
    check_every_parameter_learns(network=network, objective=objective, conditional=conditional, latent=3)


@pytest.mark.parametrize("objective", SPATIAL, ids=lambda o: o["kind"])
@pytest.mark.parametrize("network", NETWORKS[:2], ids=lambda n: n["kind"])
@pytest.mark.parametrize("conditional", [False, True])
def test_every_parameter_learns_where_the_latent_is_spatial(network, objective, conditional):
    check_every_parameter_learns(network=network, objective=objective, conditional=conditional, latent=3, spatial=True)


def check_every_parameter_learns(**config):
    config = config_of(**config)
    module = build(FAMILY, config, IMAGE, seed=0).module
    with torch.no_grad():
        for value in module.encoder.parameters():
            value.mul_(3)  # so that not every output is rounded to zero
    batch = Batch(torch.rand(4, 3, 8, 12) * 2 - 1, torch.arange(4))
    (phase,) = FAMILY.phases(module)
    phase.loss(batch, Progress(0, 0, torch.Generator().manual_seed(0))).value.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in phase.module.parameters())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"kind": "transformer", "patch": 4}, r"patch=4 does not divide images of 12x18. Use one of 1, 2, 3, 6\."),
        ({"kind": "conv", "halvings": 2}, r"halvings=2 does not divide images of 12x18. Use one of 1\."),
    ],
)
def test_sides_that_do_not_divide_are_refused_with_what_does(network, message):
    with pytest.raises(ConfigError, match=message):
        build(FAMILY, config_of(network=network), DataSpec(kind="image", shape=(1, 12, 18)), seed=0)


@pytest.mark.parametrize("network", NETWORKS[:2], ids=lambda n: n["kind"])
def test_a_spatial_latent_lies_on_the_grid_that_the_network_ends_in(network):
    module = build(FAMILY, config_of(network=network, latent=3, spatial=True), IMAGE, seed=0).module
    assert module.latent_shape == (3, 2, 3)
    assert module.features(torch.zeros(2, 3, 8, 12), None).shape == (2, 6, 2, 3)


def test_a_condition_stands_beside_every_place():
    x, condition = torch.randn(2, 3, 4, 5), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    both = beside(x, condition)
    assert torch.equal(both[:, :3], x)
    assert torch.equal(both[:, 3:].mean((2, 3)), condition)
    assert beside(x, condition[:, :0]) is x


def test_a_perceptron_with_a_spatial_latent_is_refused():
    with pytest.raises(ConfigError, match=r"has no grid for a spatial or quantised latent\. Use conv or transformer"):
        build(FAMILY, config_of(spatial=True), IMAGE, seed=0)


def test_odd_images_are_sent_from_convolutions_to_the_other_networks():
    odd = DataSpec(kind="image", shape=(1, 7, 7), levels=17)
    with pytest.raises(ConfigError, match="Use kind: transformer or mlp"):
        build(FAMILY, config_of(network={"kind": "conv"}), odd, seed=0)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_image_networks_refuse_vectors(kind):
    with pytest.raises(ConfigError, match=f"{kind}' reads images, the data is vector. Use kind: mlp"):
        build(FAMILY, config_of(network={"kind": kind}), VECTOR, seed=0)


def test_a_condition_without_classes_is_refused():
    bare = DataSpec(kind="vector", shape=(2,))
    with pytest.raises(ConfigError, match=r"the data has no classes\. Use conditional: false"):
        build(FAMILY, config_of(conditional=True), bare, seed=0)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="heads=3 does not divide width=64"):
        config_of(network={"kind": "transformer", "heads": 3})


def test_the_elbo_s_optimal_variance_is_refused_for_the_importance_weighted_bound():
    with pytest.raises(ConfigError, match="use 'learned'"):
        config_of(objective={"kind": "iwae", "decoder": {"kind": "gaussian", "variance": "optimal"}})
