"""What the likelihoods of discrete pictures share: binarised pixels, and levels as bins of a logistic."""

import torch
import torch.nn.functional as F
from torch import Tensor


def binarise(x: Tensor, uniform: Tensor) -> Tensor:
    """Each element on (1) with probability (x + 1) / 2, else off (-1). (B, *), (B, *) in [0, 1) -> (B, *)

    Drawing anew at each sight of x is dynamic binarisation: Salakhutdinov and Murray, 2008.
    """
    return 2 * (uniform < (x + 1) / 2).to(x.dtype) - 1


def discretised_logistic_log_prob(mean: Tensor, log_scale: Tensor, x: Tensor, levels: int) -> Tensor:
    """log of the logistic's mass in the bin of each element, x on the grid of levels in [-1, 1]. (*) -> (*)

    The lowest bin reaches down to -inf, the highest up to inf, so the levels' probabilities sum to 1. With a, b the
    bin's scaled edges, sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) has no cancellation.
    Source: Salimans et al., 2017 (PixelCNN++), eq. 2, https://arxiv.org/abs/1701.05517.
    """
    half_bin, inverse_scale = 1 / (levels - 1), torch.exp(-log_scale)
    below = -F.softplus((mean - half_bin - x) * inverse_scale)  # log P(value <= upper edge)
    above = -F.softplus((x - half_bin - mean) * inverse_scale)  # log P(value >= lower edge)
    inside = below + above + torch.log(-torch.expm1(-2 * half_bin * inverse_scale))
    return torch.where(x < half_bin - 1, below, torch.where(x > 1 - half_bin, above, inside))
