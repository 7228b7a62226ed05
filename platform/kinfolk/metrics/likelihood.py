"""Log-probabilities as named figures: a bound is called a bound, and a density has no bits per dimension."""

import math

from torch import Tensor

from kinfolk.contract import DataSpec, Likelihood
from kinfolk.errors import ConfigError, DataError

_KIND = {"exact": "log_prob", "lower_bound": "elbo", "ode": "ode_log_prob"}
_OF = {"levels": "", "binary": "_binary", "density": "_density", "codes": "_codes"}


def bits_per_dim(nats: float, spec: DataSpec) -> float:
    """-log2 P over the elements of one sample; lower is better, ``spec.levels`` equally likely levels give their log2.

    Raises:
        ConfigError: the data is continuous; a density has no bits per dimension.
    """
    if spec.levels is None:
        raise ConfigError(
            f"{spec.kind} data of shape {spec.shape} is continuous and has no bits per dimension. Report nats."
        )
    return -nats / (spec.dims * math.log(2))


def likelihood_figures(likelihood: Likelihood, nats: Tensor, spec: DataSpec) -> dict[str, float]:
    """Mean of ``nats`` (N,) under a name that says what it is.

    ``log_prob``, ``elbo`` or ``ode_log_prob`` for an exact value, a lower bound or the estimate of an ODE solver, then
    ``_binary``, ``_density`` or ``_codes`` unless it is the probability of the levels, then the unit: ``elbo_nats``
    and ``elbo_bits_per_dim`` of levels, ``log_prob_density_nats`` alone of a density. Binary data has two levels.

    Raises:
        ConfigError: the likelihood says it is of levels, and the data has none.
        DataError: there is no value, or a NaN.
    """
    if nats.dim() != 1 or not len(nats) or nats.isnan().any():
        raise DataError(
            f"log-probabilities must be (N,) numbers, got shape {tuple(nats.shape)}, {int(nats.isnan().sum())} of them "
            "NaN. Look at the model: it has diverged, or its log_prob is wrong."
        )
    name, mean = _KIND[likelihood.kind] + _OF[likelihood.of], float(nats.double().mean())
    figures = {f"{name}_nats": mean}
    if likelihood.of in ("levels", "binary"):
        figures[f"{name}_bits_per_dim"] = bits_per_dim(mean, spec)
    return figures
