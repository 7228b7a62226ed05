"""Layers whose weight has spectral norm 1, so that none of them stretches its input.

Source: Miyato et al., 2018, https://arxiv.org/abs/1802.05957, Sec. 2.1 and Appendix A. A kernel counts as the matrix
of (output channels, everything else), as there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding
SQUARINGS = 5  # of the weight's Gram matrix: 32 rounds of power iteration, where the source has one


def applied(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """``layer`` with another weight."""
    match layer:
        case nn.Embedding():
            return F.embedding(x, weight)
        case nn.Linear():
            return F.linear(x, weight, layer.bias)
        case nn.Conv2d():
            assert isinstance(layer.padding, tuple)
            return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        case nn.ConvTranspose2d():
            assert isinstance(layer.padding, tuple)
            return F.conv_transpose2d(x, weight, layer.bias, layer.stride, layer.padding, layer.output_padding)


class SpectrallyNormalised(nn.Module):
    """``layer`` with its weight divided by the largest singular value, which power iteration follows.

    A pass changes nothing: ``iterate`` is for the end of each turn, so that neither microbatches nor evaluation count.
    """

    left: Tensor  # (rows,) singular vectors of the largest singular value
    right: Tensor  # (columns,)

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        if not bool(layer.weight.any()):  # a branch that starts as nothing has no direction to keep
            nn.init.xavier_normal_(layer.weight)
        self.layer = layer
        rows, columns = self.matrix().shape
        self.register_buffer("left", layer.weight.new_empty(rows))
        self.register_buffer("right", layer.weight.new_empty(columns))
        self.derive()

    def matrix(self) -> Tensor:
        """The weight as a matrix, a row for each output. -> (rows, columns)"""
        weight = self.layer.weight
        return (weight.movedim(1, 0) if isinstance(self.layer, nn.ConvTranspose2d) else weight).flatten(1)

    @torch.no_grad()
    def derive(self) -> None:
        """The singular vectors of the weight of now, exactly."""
        left, _, right = torch.linalg.svd(self.matrix(), full_matrices=False)
        self.left.copy_(left[:, 0])
        self.right.copy_(right[0])

    @torch.no_grad()
    def iterate(self) -> None:
        """Power iteration on the weight of now, from the vectors so far.

        A single round falls behind for many steps where the second singular value grows past the first.
        """
        rows, columns = self.matrix().shape
        wide = rows <= columns
        matrix = self.matrix() if wide else self.matrix().T  # (n, m), n <= m
        shorter, longer = (self.left, self.right) if wide else (self.right, self.left)  # (n,), (m,)
        power = matrix @ matrix.T  # (n, n)
        for _ in range(SQUARINGS):
            power = power / power.norm()
            power = power @ power
        shorter.copy_(F.normalize(power @ shorter, dim=0))
        longer.copy_(F.normalize(matrix.T @ shorter, dim=0))

    def weight(self) -> Tensor:
        """The layer's weight over its spectral norm, differentiable in both."""
        return self.layer.weight / (self.left @ self.matrix() @ self.right)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        return applied(self.layer, x, self.weight())


def normalise_spectrally(module: nn.Module) -> None:
    """Put every linear, convolutional and embedding layer below ``module`` into a ``SpectrallyNormalised``."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Layer):
                setattr(parent, name, SpectrallyNormalised(child))


def iterate(module: nn.Module) -> None:
    """Power iteration in every layer below ``module`` that has one."""
    for layer in module.modules():
        if isinstance(layer, SpectrallyNormalised):
            layer.iterate()
