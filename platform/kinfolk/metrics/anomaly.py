"""How well a score tells strange samples from normal ones."""

import torch
from torch import Tensor

from kinfolk.errors import DataError


def auroc(normal: Tensor, strange: Tensor) -> float:
    """Probability that a strange sample scores higher than a normal one, ties counted half. (N,), (M,)

    Raises:
        DataError: one side has no scores, or a score is NaN.
    """
    for name, scores in (("normal", normal), ("strange", strange)):
        if scores.dim() != 1 or not len(scores) or scores.isnan().any():
            raise DataError(
                f"{name} scores must be (N,) numbers, got shape {tuple(scores.shape)}, {int(scores.isnan().sum())} of "
                "them NaN. Look at the model: it has diverged, or its anomaly_score is wrong."
            )
    from sklearn.metrics import roc_auc_score

    truth = [0] * len(normal) + [1] * len(strange)
    _, rank = torch.cat([normal, strange]).unique(return_inverse=True)  # sklearn refuses infinity, the strangest score
    return float(roc_auc_score(truth, rank.tolist()))
