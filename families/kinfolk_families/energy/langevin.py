"""Langevin dynamics on an energy, and the buffer in which its chains live on from step to step.

Sources: Welling & Teh, 2011, ICML; Du & Mordatch, 2019 (IGEBM), https://arxiv.org/abs/1903.08689; Grathwohl et al.,
2020 (JEM), https://arxiv.org/abs/1912.03263. Shapes: B batch, N chains in the buffer, K classes.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Progress
from kinfolk_families._shared.noise import per_row
from kinfolk_families.energy.config import BufferConfig, LangevinConfig

Energy = Callable[[Tensor, Tensor | None], Tensor]  # x (B, *), label (B,) or None -> (B,), lower for likelier


def energy_gradient(energy: Energy, x: Tensor, label: Tensor | None) -> Tensor:
    """dE/dx, detached; parameters get no gradient. (B, *), (B,) -> (B, *)"""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(at, label).sum(), at)
    return gradient


def langevin_step(
    x: Tensor, gradient: Tensor, noise: Tensor, step_size: float | Tensor, noise_scale: float | Tensor
) -> Tensor:
    """x - step_size * gradient + noise_scale * noise; sizes broadcast. (B, *) each -> (B, *)"""
    return x - step_size * gradient + noise_scale * noise


def langevin(
    energy: Energy, x: Tensor, label: Tensor | None, config: LangevinConfig, bounded: bool, generator: Generator
) -> Tensor:
    """Where a chain from ``x`` is after ``config.steps`` steps; ``bounded`` chains stay in [-1, 1]. (B, *) -> (B, *)"""
    for _ in range(config.steps):
        gradient = limited(energy_gradient(energy, x, label), config.gradient_limit)
        noise = torch.randn(x.shape, generator=generator, device=generator.device)
        x = langevin_step(x, gradient, noise, config.step_size, config.noise)
        x = x.clamp(-1, 1) if bounded else x
    return x


def limited(gradient: Tensor, limit: float | None) -> Tensor:
    """``gradient`` with each element clipped to [-limit, limit]. (*) -> (*)"""
    return gradient if limit is None else gradient.clamp(-limit, limit)


def is_bounded(spec: DataSpec) -> bool:
    """Whether samples have a range, [-1, 1], to keep to."""
    return spec.levels is not None


def fresh_chains(count: int, spec: DataSpec, generator: Generator | None = None) -> Tensor:
    """Where chains begin: uniform in the data's range, or Gaussian with its deviation. -> (count, *)"""
    device = generator.device if generator is not None else "cpu"
    shape = (count, *spec.shape)
    if is_bounded(spec):
        return 2 * torch.rand(shape, generator=generator, device=device) - 1
    return spec.data_std * torch.randn(shape, generator=generator, device=device)


class ReplayBuffer(nn.Module):
    """The ends of earlier chains, the same on all workers between steps.

    Chain n is of class n modulo K. Each worker draws from and writes to its own slice of the buffer, marking what it
    wrote; ``exchange`` then gives every worker the marked chains of all.
    """

    chains: Tensor  # (N, *)
    written: Tensor  # (N,) 1 where this step wrote, else 0

    def __init__(self, config: BufferConfig, spec: DataSpec, classes: int = 0) -> None:
        super().__init__()
        self.config, self.spec, self.classes = config, spec, max(classes, 1)
        _check(config, spec, self.classes)
        self.register_buffer("chains", self._stored(fresh_chains(config.size, spec)))
        self.register_buffer("written", torch.zeros(config.size))

    def _stored(self, x: Tensor) -> Tensor:
        return self.spec.to_uint8(x) if self.config.storage == "uint8" else x

    def slots(self, progress: Progress) -> range:
        """The worker's own part of the N / K groups of chains, one of each class."""
        groups, rank, workers = self.config.size // self.classes, progress.rank, progress.workers
        return range(groups * rank // workers, groups * (rank + 1) // workers)

    def draw(self, count: int, label: Tensor | None, progress: Progress) -> Tensor:
        """Positions of ``count`` different chains of the worker's slice, of the classes asked for. -> (count,)

        None is of a group that an earlier microbatch of the step has written to.

        Raises:
            ConfigError: a worker's slice has fewer groups of chains than the step has samples for it.
        """
        own, generator = self.slots(progress), progress.generator
        (free,) = (self.written.view(-1, self.classes)[own.start : own.stop].sum(1) == 0).nonzero(as_tuple=True)
        self._check_room(len(own) - len(free), count, progress.workers)
        order = torch.randperm(len(free), generator=generator, device=generator.device)[:count]
        groups = own.start + free[order]
        return groups * self.classes + (0 if label is None else label)

    def _check_room(self, taken: int, count: int, workers: int) -> None:
        size, classes, batch = self.config.size, self.classes, (taken + count) * workers
        if size // classes // workers < taken + count:  # the smallest slice, so that all refuse
            more = " or more" if taken else ""  # of how many microbatches this is one is not known here
            apart = f", and each of {classes} classes has its own" if classes > 1 else ""
            raise ConfigError(
                f"system.buffer.size={size} is too small for batches of {batch}{more}: every sample takes a chain"
                f"{apart}. Set it to at least {batch * classes}, {classes} for each sample of training.batch_size, "
                "better to 100 times the batch, or lower training.batch_size."
            )

    def read(self, index: Tensor, generator: Generator) -> Tensor:
        """The chains at ``index``, a random ``fresh_share`` of them begun anew. (B,) -> (B, *) float32"""
        x = self.at(index)
        fresh = fresh_chains(len(x), self.spec, generator)
        anew = torch.rand(len(x), generator=generator, device=generator.device) < self.config.fresh_share
        return torch.where(per_row(anew, x), fresh, x)

    def at(self, index: Tensor) -> Tensor:
        """The chains at ``index`` as they are. (B,) -> (B, *) float32"""
        x = self.chains[index]
        return x.float() / 127.5 - 1 if self.config.storage == "uint8" else x

    @torch.no_grad()
    def write(self, index: Tensor, x: Tensor) -> None:
        """Put chains back. (B,), (B, *)"""
        self.chains[index] = self._stored(x)
        self.written[index] = 1

    @torch.no_grad()
    def exchange(self, progress: Progress) -> None:
        """Give all workers what each of them wrote in this step; slices do not overlap, so a sum joins them."""
        (index,) = progress.all_reduce(self.written.clone()).nonzero(as_tuple=True)
        own = per_row(self.written[index], self.chains)
        self.chains[index] = progress.all_reduce(self.chains[index] * own).to(self.chains.dtype)
        self.written.zero_()


def _check(config: BufferConfig, spec: DataSpec, classes: int) -> None:
    if config.size % classes:
        nearest = -(-config.size // classes) * classes
        raise ConfigError(
            f"buffer.size={config.size} does not divide over {classes} classes. Use a multiple, e.g. {nearest}."
        )
    if config.storage == "uint8" and not is_bounded(spec):
        raise ConfigError(f"buffer.storage=uint8 holds images; this {spec.kind} data has no range. Use float32.")
