"""What a trained classifier can do: judge samples, and turn them into features."""

from torch import Tensor

from kinfolk.contract import Batch, DataSpec, Tasks
from kinfolk_families.classifier.config import ClassifierOptions
from kinfolk_families.classifier.model import Classifier


def tasks(module: Classifier) -> Tasks:
    """``classify`` to logits (B, K) and ``encode`` to features (B, Z); seeds are not used."""

    def classify(batch: Batch, seeds: Tensor) -> Tensor:  # noqa: ARG001
        return module(batch.x)

    def encode(batch: Batch, seeds: Tensor) -> Tensor:  # noqa: ARG001
        return module.embed(batch.x)

    features = DataSpec(kind="vector", shape=(module.config.features,), classes=module.classes)
    return Tasks(options=ClassifierOptions(), classify=classify, encode=encode, latent_spec=features)
