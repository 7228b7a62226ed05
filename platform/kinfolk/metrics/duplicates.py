"""The birthday test: how many pairs of a batch are nearly the same says how few different samples there can be.

Source: Arora and Zhang, 2017, Do GANs actually learn the distribution?, https://arxiv.org/abs/1706.08224.
"""

import torch
from torch import Tensor

from kinfolk.metrics.features import checked

_UNSEEN = 3  # pairs that may be expected, at 95 %, where none was seen (rule of three)


def pair_distances(features: Tensor) -> Tensor:
    """Distance of every pair of different rows, exact also where it is 0. (N, D) -> (N (N - 1) / 2,)

    Raises:
        DataError: fewer than two rows, or a value that is not finite.
    """
    return torch.nn.functional.pdist(checked("features", features))


def support_estimate(pairs: int, samples: int) -> float:
    """Different samples there are, from the near-duplicate ``pairs`` among so many: a lower estimate.

    N draws hold N (N - 1) / 2 * sum p^2 equal pairs on average, and 1 / sum p^2 is at most the size of the support,
    which it reaches where all are alike likely. Fewer than three pairs cannot be told from three.
    """
    return samples * (samples - 1) / (2 * max(pairs, _UNSEEN))
