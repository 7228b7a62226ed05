"""A classifier of stacks: what it says is worked out from what the classifier of one channel says."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kinfolk.channels import joint_log_prob, on_each_channel
from kinfolk.contract import Batch, Config, DataSpec, Family, Model, SamplerOptions, Tasks
from kinfolk.errors import DataError

DIGIT = DataSpec(kind="image", shape=(1, 2, 2), levels=256, classes=4)
STACK = DataSpec(kind="image", shape=(3, 2, 2), levels=256, classes=64)


def digit_tasks(module):
    """The class is the first pixel; features are the other three, plus the row's seed."""
    return Tasks(
        options=SamplerOptions(),
        classify=lambda batch, seeds: nn.functional.one_hot(batch.x[:, 0, 0, 0].long(), 4) * 3.0,
        encode=lambda batch, seeds: batch.x.flatten(1)[:, 1:] + seeds[:, None],
        latent_spec=DataSpec(kind="vector", shape=(3,), classes=4),
    )


FAMILY = Family(
    "stub", frozenset({"image"}), Config, SamplerOptions, lambda *_: nn.Identity(), lambda _: [], digit_tasks
)
JUDGE = Model(FAMILY, Config(), DIGIT, nn.Identity())


def stacks():
    """(64, 3, 2, 2): sample i shows the digits of i in base 4."""
    x = torch.arange(64 * 12).reshape(64, 3, 2, 2).float()
    number = torch.arange(64)
    x[:, :, 0, 0] = torch.stack([number // 16, number // 4 % 4, number % 4], dim=1).float()
    return x


def test_the_class_reads_the_channels_in_order():
    logits = on_each_channel(JUDGE, STACK).tasks.classify(Batch(stacks()), torch.arange(64))
    assert logits.argmax(1).tolist() == list(range(64))


def test_features_are_those_of_each_channel_side_by_side_under_the_seed_of_the_sample():
    tasks = on_each_channel(JUDGE, STACK).tasks
    x, seeds = stacks(), torch.arange(64) * 1000
    expected = torch.cat([x[:, channel].flatten(1)[:, 1:] for channel in range(3)], dim=1) + seeds[:, None]
    assert torch.equal(tasks.encode(Batch(x), seeds), expected)
    assert tasks.latent_spec.shape == (9,)


def test_joint_probabilities_multiply_and_sum_to_one():
    logits = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = logits.softmax(2).unbind(1)
    joint = joint_log_prob(logits).exp()
    assert torch.allclose(joint[:, 3 * 2 + 1], first[:, 2] * second[:, 1])
    assert torch.allclose(joint.sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("change", [{"shape": (3, 2, 3)}, {"shape": (2, 2, 2)}, {"classes": 63}])
def test_a_classifier_of_other_channels_or_classes_is_refused(change):
    with pytest.raises(DataError, match=r"each channel of samples .*trained on what each channel holds"):
        on_each_channel(JUDGE, STACK.model_copy(update=change))


def test_a_judge_of_stacks_is_a_model_of_stacks():
    wrapped = on_each_channel(JUDGE, STACK)
    assert wrapped.spec == STACK
    assert JUDGE.tasks.latent_spec.shape == (3,)  # the one wrapped is as it was
    assert replace(wrapped, family=FAMILY, spec=DIGIT) == JUDGE
