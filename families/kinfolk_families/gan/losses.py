"""What critic and generator minimise in a step, and their two phases.

Real sample and generated sample at one position of the batch are a pair; they share their class. Shapes: B samples,
P packs of them (a pack is one sample unless samples are packed), Z dimensions of noise.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families.gan.adversarial import LOSSES, AdversarialLoss
from kinfolk_families.gan.config import GANConfig
from kinfolk_families.gan.model import GAN
from kinfolk_families.gan.packing import packed
from kinfolk_families.gan.penalties import between, clip_weights, due, squared_gradient_norm, unit_norm_distance
from kinfolk_families.gan.spectral import iterate
from kinfolk_families.gan.unrolling import Parameters, unrolled

Judge = Callable[[Tensor], Tensor]  # packs (P, m*C, *) -> logits (P,)


def judge_of(gan: GAN, label: Tensor | None, draws: torch.Generator, parameters: Parameters | None = None) -> Judge:
    """For both players the one way to the critic, through the augmentation; ``parameters`` in place of its own."""

    def judge(packs: Tensor) -> Tensor:
        inputs = (gan.augmented(packs, draws), label)
        return gan.critic(*inputs) if parameters is None else functional_call(gan.critic, dict(parameters), inputs)

    return judge


class Judged(NamedTuple):
    """What a critic says of real and generated packs, and what it minimises there."""

    value: Tensor  # ()
    real: Tensor  # (P,) logits
    fake: Tensor  # (P,) logits
    penalised: Mapping[str, Tensor]  # () each, by kind of penalty, before its factor


def critic_objective(config: GANConfig, judge: Judge, real: Tensor, fake: Tensor, progress: Progress) -> Judged:
    """The critic's adversarial loss plus its penalties that are due. (P, *), (P, *), of which ``fake`` requires grad"""
    weights = due(config.penalties, progress.step, progress.samples_seen)
    real = real.detach().requires_grad_()
    of_real, of_fake = judge(real), judge(fake)  # (P,), (P,)
    penalised: dict[str, Tensor] = {}
    for kind in weights:
        match kind:
            case "r1":
                penalised[kind] = squared_gradient_norm(real, of_real)
            case "r2":
                penalised[kind] = squared_gradient_norm(fake, of_fake)
            case "gradient":
                generator = progress.generator
                place = torch.rand(len(real), generator=generator, device=real.device, dtype=real.dtype)
                point = between(real, fake, place)
                penalised[kind] = unit_norm_distance(point, judge(point))
            case "drift":
                penalised[kind] = of_real.square().mean()  # Karras et al., 2018, Appendix A.1
    value = LOSSES[config.loss].critic(of_real, of_fake)
    for kind, amount in penalised.items():
        value = value + weights[kind] * amount
    return Judged(value, of_real, of_fake, penalised)


def critic_loss(gan: GAN, batch: Batch, z: Tensor, progress: Progress) -> Loss:
    """Adversarial loss of the critic plus its penalties, for given noise z (B, Z).

    Logs ``logit_gap``, the mean of D(x) - D(g), of each penalty due in this step what it is a multiple of, and the
    probability of ``augmentation``.
    """
    label, config, draws = gan.condition(batch.label), gan.config, progress.generator
    with torch.no_grad():
        fake, _ = gan.generator.training_samples(z, label, draws)
    real, fake = packed(batch.x, config.packing), packed(fake, config.packing).requires_grad_()
    judged = critic_objective(config, judge_of(gan, label, draws), real, fake, progress)
    logs = {"logit_gap": (judged.real - judged.fake).mean(), **judged.penalised}
    if gan.augmentation is not None:
        game = LOSSES[config.loss]
        gan.augmentation.record(judged.real - (judged.fake if game.paired else game.boundary))
        logs["augmentation"] = gan.augmentation.probability.clone()
    return Loss(judged.value, {name: value.detach() for name, value in logs.items()})


def _foreseen(gan: GAN, real: Tensor, fake: Tensor, label: Tensor | None, progress: Progress) -> Parameters | None:
    """The critic's parameters some steps ahead, if the recipe unrolls it; penalties are learnt from as well."""
    plan = gan.config.unrolled
    if plan is None:
        return None

    def objective(parameters: Parameters) -> Tensor:
        judge = judge_of(gan, label, progress.generator, parameters)
        return critic_objective(gan.config, judge, real, fake, progress).value

    start = dict(gan.critic.named_parameters())
    return unrolled(objective, start, plan.steps, plan.lr, gan.config.weight_clip)


def _judged(
    gan: GAN, real: Tensor, fake: Tensor, label: Tensor | None, progress: Progress
) -> tuple[Tensor, Tensor | None]:
    """Logits of generated packs and, where the generator's turn depends on them, of real ones. -> (P,), (P,)"""
    parameters = _foreseen(gan, real, fake, label, progress)
    judge, game = judge_of(gan, label, progress.generator, parameters), LOSSES[gan.config.loss]
    of_fake = judge(fake)
    if not game.paired and (parameters is None or game.generator_on_data is None):
        return of_fake, None
    with torch.set_grad_enabled(parameters is not None):  # a foreseen critic depends on what is generated
        return of_fake, judge(real)


def generator_loss(gan: GAN, batch: Batch, z: Tensor, progress: Progress) -> Loss:
    """Adversarial loss of the generator, and what its paths in style cost, for given noise z (B, Z).

    Logs ``fake_logit``, the mean of D(g), and ``path_length``, the mean length, where it is due.
    """
    label, config = gan.condition(batch.label), gan.config
    fake, styles = gan.generator.training_samples(z, label, progress.generator)
    parts = 1 if config.unrolled is None else len(z) // config.unrolled.group
    reals, fakes = (packed(x, config.packing).chunk(parts) for x in (batch.x, fake))
    labels = [None] * parts if label is None else list(label.chunk(parts))
    judged = [_judged(gan, *each, progress) for each in zip(reals, fakes, labels, strict=True)]
    of_fake = torch.cat([each for each, _ in judged])  # (P,)
    of_real = [each for _, each in judged if each is not None]
    value = _generator_objective(LOSSES[config.loss], of_fake, torch.cat(of_real) if of_real else None)
    logs = {"fake_logit": of_fake.mean().detach()}
    if styles is not None:
        cost, lengths = _styles_turn(gan, fake, styles, progress)
        value, logs = value + cost, logs | lengths
    return Loss(value, logs)


def _generator_objective(game: AdversarialLoss, of_fake: Tensor, of_real: Tensor | None) -> Tensor:
    """What the generator minimises of logits, of real packs too where it is paired or its critic is foreseen."""
    if of_real is None:
        return game.generator(of_fake)
    if game.paired:
        return game.generator(of_fake - of_real)
    assert game.generator_on_data is not None
    return game.generator(of_fake) + game.generator_on_data(of_real)


def _styles_turn(
    gan: GAN, fake: Tensor, styles: Tensor, progress: Progress
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """What the styles of a microbatch cost, if their path lengths are due, and the log of it. The mean style learns."""
    assert gan.generator.styled is not None
    gan.generator.styled.record(styles)
    penalty, turn = gan.generator.path_length, progress.step // gan.config.critic_steps
    if penalty is None or turn % penalty.config.every_steps:
        return 0.0, {}
    cost, length = penalty(fake, styles, progress.generator)
    return cost, {"path_length": length.detach()}


def _turn(loss: Callable[[GAN, Batch, Tensor, Progress], Loss], gan: GAN, batch: Batch, progress: Progress) -> Loss:
    gan.grow(progress.samples_seen)
    return loss(gan, batch, gan.noise(len(batch), progress.generator), progress)


def _after_critic(gan: GAN, progress: Progress) -> None:
    if gan.config.weight_clip is not None:
        clip_weights(gan.critic, gan.config.weight_clip)
    if gan.augmentation is not None:
        gan.augmentation.after(progress, gan.config.packing)
    iterate(gan.critic)


def _after_generator(gan: GAN, progress: Progress) -> None:
    if gan.generator.styled is not None:
        gan.generator.styled.after(progress)
    if gan.generator.path_length is not None:
        gan.generator.path_length.after(progress)
    iterate(gan.generator)


def phases(gan: GAN) -> Sequence[Phase]:
    """The critic's turn, then the generator's where it is due, each with fresh noise."""
    config = gan.config
    return [
        Phase(
            "critic",
            gan.critic,
            partial(_turn, critic_loss, gan),
            config.critic_optimizer,
            after=partial(_after_critic, gan),
            double_backward=any(each.kind != "drift" for each in config.penalties),
            group=config.judged_together,
        ),
        Phase(
            "generator",
            gan.generator,
            partial(_turn, generator_loss, gan),
            config.generator_optimizer,
            every_steps=config.critic_steps,
            after=partial(_after_generator, gan),
            double_backward=config.unrolled is not None or config.path_length is not None,
            group=config.judged_together if config.unrolled is None else config.unrolled.group,
        ),
    ]
