"""A critic some steps ahead, as a function of what the generator does now.

Source: Metz et al., 2017, https://arxiv.org/abs/1611.02163, eq. 7 and 8.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def unrolled(
    objective: Callable[[Parameters], Tensor], start: Parameters, steps: int, lr: float, bound: float | None
) -> Parameters:
    """Parameters after ``steps`` of gradient descent on ``objective``, differentiable in all that it depends on.

    After each step they are put back between -``bound`` and ``bound``, where there is one, as weight clipping does.
    ``start`` is copied and never moved; what comes back has no gradient with respect to it.
    """
    parameters = {name: value.detach().requires_grad_() for name, value in start.items()}
    for _ in range(steps):
        gradients = torch.autograd.grad(
            objective(parameters), list(parameters.values()), create_graph=True, materialize_grads=True
        )
        pairs = zip(parameters.items(), gradients, strict=True)
        parameters = {name: value - lr * gradient for (name, value), gradient in pairs}
        if bound is not None:
            parameters = {name: value.clamp(-bound, bound) for name, value in parameters.items()}
    return parameters
