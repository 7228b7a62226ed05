"""A classifier of one channel as a classifier of stacks of them: what it says of each channel, put together."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Model, RowTask, Tasks
from kinfolk.errors import DataError


def joint_log_prob(logits: Tensor) -> Tensor:
    """Log-probabilities of numbers whose digits are drawn each for itself, the first digit the most significant.

    (B, C, K) -> (B, K^C); its argmax reads the argmax of every row.
    """
    digits = logits.log_softmax(2)
    joint = digits[:, 0]
    for digit in digits.unbind(1)[1:]:
        joint = (joint[:, :, None] + digit[:, None]).flatten(1)
    return joint


def on_each_channel(classifier: Model, spec: DataSpec) -> Model:
    """``classifier``, of one channel and K classes, for samples of ``spec``, of C channels and K^C classes.

    Features are those of the channels side by side, (B, C * Z), logits those of ``joint_log_prob``, (B, K^C).

    Raises:
        DataError: a channel is not what the classifier knows, or the classes do not multiply to those of ``spec``.
    """
    one, channels = classifier.spec, spec.shape[0]
    if one.shape != (1, *spec.shape[1:]) or (one.classes or 0) ** channels != spec.classes:
        raise DataError(
            f"A classifier of samples {one.shape} of {one.classes} classes cannot judge each channel of samples "
            f"{spec.shape} of {spec.classes} classes. Use one of samples {(1, *spec.shape[1:])}, trained on what each "
            "channel holds."
        )
    family = replace(classifier.family, tasks=partial(_tasks, classifier.family.tasks, spec))
    return replace(classifier, family=family, spec=spec)


def _tasks(one_channel: Callable[[Any], Tasks], spec: DataSpec, module: Any) -> Tasks:
    one, channels = one_channel(module), spec.shape[0]
    assert one.classify is not None
    assert one.encode is not None
    assert one.latent_spec is not None
    classify, encode = _each(one.classify), _each(one.encode)
    features = DataSpec(kind="vector", shape=(channels * one.latent_spec.dims,), classes=spec.classes)
    return Tasks(
        options=one.options,
        classify=lambda batch, seeds: joint_log_prob(classify(batch, seeds)),
        encode=lambda batch, seeds: encode(batch, seeds).flatten(1),
        latent_spec=features,
    )


def _each(task: RowTask) -> RowTask:
    """``task`` on every channel as a sample of its own, under its sample's seed. x (B, C, H, W) -> (B, C, n)"""

    def on_channels(batch: Batch, seeds: Tensor) -> Tensor:
        channels = batch.x.flatten(0, 1)[:, None]  # (B * C, 1, H, W)
        each = torch.repeat_interleave(seeds, batch.x.shape[1])
        return task(Batch(channels), each).unflatten(0, batch.x.shape[:2])

    return on_channels
