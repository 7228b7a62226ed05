"""The tasks of a model as methods, once for callers that wait and for those that await."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from kinfolk.client.files import Samples

Answer = TypeVar("Answer", covariant=True)  # a result, or what one awaits to have it

Label = int | Sequence[int]


class TaskCalls(ABC, Generic[Answer]):
    """What a model can be asked for; which of it a model does, and with what options, ``describe`` says.

    ``seed``: sample i is sample 0 of seed + i; ``seeds``: one for each sample, in place of ``seed`` and ``n``.
    ``label``: the class of all samples, or one for each. ``x`` and ``mask``: a picture, an array, a path, the bytes of
    a file, or a list of these. What is left out is the server's to choose, a seed the client's: the result tells it.
    Options are the family's own. Every method raises ClientError, see ``kinfolk.client.errors``.
    """

    @abstractmethod
    def run(self, task: str, /, **settings: Any) -> Answer:
        """Any task by name, with whatever settings it takes."""

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        label: Label | None = None,
        **options: Any,
    ) -> Answer:
        """``n`` samples; one, where neither ``n`` nor ``seeds`` is given."""
        return self.run("sample", n=n, seed=seed, seeds=seeds, label=label, **options)

    def interpolate(
        self, seed: int, seed_to: int, n: int | None = None, *, label: Label | None = None, **options: Any
    ) -> Answer:
        """``n`` samples, 8 if left out, on the way from the sample of one seed to that of another."""
        return self.run("interpolate", seed=seed, seed_to=seed_to, n=n, label=label, **options)

    def inpaint(
        self,
        x: Samples,
        mask: Samples,
        n: int | None = None,
        *,
        seed: int | None = None,
        label: Label | None = None,
        **options: Any,
    ) -> Answer:
        """``x`` with its missing parts drawn; ``mask`` is white, 255 or true, where ``x`` is given."""
        return self.run("inpaint", x=x, mask=mask, n=n, seed=seed, label=label, **options)

    def denoise(
        self,
        x: Samples,
        *,
        noise_level: float | None = None,
        seed: int | None = None,
        label: Label | None = None,
        **options: Any,
    ) -> Answer:
        """What lay under the noise in ``x``, of standard deviation ``noise_level`` where data are in [-1, 1]."""
        return self.run("denoise", x=x, noise_level=noise_level, seed=seed, label=label, **options)

    def reconstruct(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """``x`` encoded and decoded again."""
        return self.run("reconstruct", x=x, seed=seed, label=label)

    def complete(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """Every part of ``x`` as it follows from the others."""
        return self.run("complete", x=x, seed=seed, label=label)

    def encode(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """The latents of ``x``."""
        return self.run("encode", x=x, seed=seed, label=label)

    def decode(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """The samples of latents ``x``."""
        return self.run("decode", x=x, seed=seed, label=label)

    def log_prob(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """Log-probability of each sample in nats, (N,); ``unit`` of the result says of what, and if it is a bound."""
        return self.run("log_prob", x=x, seed=seed, label=label)

    def anomaly_score(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """How strange each sample is, (N,); higher is stranger."""
        return self.run("anomaly_score", x=x, seed=seed, label=label)

    def classify(self, x: Samples, *, seed: int | None = None, label: Label | None = None) -> Answer:
        """Logits of the classes of each sample, (N, K)."""
        return self.run("classify", x=x, seed=seed, label=label)
