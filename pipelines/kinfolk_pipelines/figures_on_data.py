"""Figures of a model on given data: likelihood, reconstruction, completion, classification, codes, anomalies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kinfolk.config import Evaluation
from kinfolk.contract import Batch, DataSpec, Model, RequestError, RowTask, Tasks
from kinfolk.data.source import Source
from kinfolk.errors import DataError
from kinfolk.metrics.anomaly import auroc
from kinfolk.metrics.codes import perplexity, usage
from kinfolk.metrics.likelihood import likelihood_figures

_CHUNK = 256  # rows of one forward pass


def _chunks(source: Source, rows: int | None = None) -> Iterator[tuple[Batch, Tensor]]:
    """The first ``rows`` of a split in stored order, each with the seed of its position; None: all of them."""
    last = min(rows or len(source), len(source))
    for start in range(0, last, _CHUNK):
        stop = min(start + _CHUNK, last)
        yield source.take(start, stop), torch.arange(start, stop)


def _rows_of(task: RowTask, source: Source, rows: int | None = None) -> Tensor:
    return torch.cat([task(batch, seeds) for batch, seeds in _chunks(source, rows)])


@torch.no_grad()
def on_data(
    model: Model, test: Source, evaluation: Evaluation, strange: Mapping[str, Source], learned: Sequence[int] = ()
) -> dict[str, float]:
    """Every figure the model's tasks allow; ``strange`` names data whose anomaly scores ought to be higher.

    ``learned`` are the classes the model was trained on; none given: all.

    Raises:
        DataError: strange data is of another shape.
    """
    tasks = model.tasks
    for other in strange.values():
        _check_shape(model.spec, other.spec)
    return {
        **_likelihood(tasks, test, evaluation),
        **_reconstruction(tasks, test),
        **_completion(tasks, test),
        **_accuracy(tasks, test),
        **_codes(tasks, test),
        **_anomaly(model, test, strange, learned),
    }


def _likelihood(tasks: Tasks, test: Source, evaluation: Evaluation) -> dict[str, float]:
    if tasks.log_prob is None:
        return {}
    rows, draws = evaluation.likelihood_samples, evaluation.importance_draws
    nats = _rows_of(tasks.log_prob.nats, test, rows)
    metrics = likelihood_figures(tasks.log_prob, nats, test.spec) | {"likelihood_rows": float(len(nats))}
    if draws is None:
        return metrics
    bound = tasks.importance_bound
    assert bound is not None
    nats = _rows_of(lambda batch, seeds: bound(batch, seeds, draws), test, rows)
    figures = likelihood_figures(replace(tasks.log_prob, kind="lower_bound"), nats, test.spec)
    tighter = {name.replace("elbo", "importance_bound"): value for name, value in figures.items()}
    return metrics | tighter | {"importance_draws": float(draws)}


def _reconstruction(tasks: Tasks, test: Source) -> dict[str, float]:
    return {} if tasks.reconstruct is None else {"reconstruction_mse": _squared_error(tasks.reconstruct, test)}


def _completion(tasks: Tasks, test: Source) -> dict[str, float]:
    return {} if tasks.complete is None else {"completion_mse": _squared_error(tasks.complete, test)}


def _squared_error(task: RowTask, test: Source) -> float:
    errors = [(task(b, s) - b.x).square().flatten(1).mean(1) for b, s in _chunks(test)]
    return float(torch.cat(errors).mean())


def _accuracy(tasks: Tasks, test: Source) -> dict[str, float]:
    if tasks.classify is None:
        return {}
    right = [torch.eq(tasks.classify(b, s).argmax(1), b.label).float() for b, s in _chunks(test) if b.label is not None]
    return {"test_accuracy": float(torch.cat(right).mean())}


def _codes(tasks: Tasks, test: Source) -> dict[str, float]:
    spec = tasks.latent_spec
    if tasks.encode is None or spec is None or spec.kind != "tokens" or spec.levels is None:
        return {}
    codes = _rows_of(tasks.encode, test)
    return {"codebook_usage": usage(codes, spec.levels), "codebook_perplexity": perplexity(codes, spec.levels)}


def _anomaly(model: Model, test: Source, strange: Mapping[str, Source], learned: Sequence[int]) -> dict[str, float]:
    """How well the anomaly score tells strange data, whose own labels, if any, are of other classes."""
    score = model.tasks.anomaly_score
    if score is None or not strange:
        return {}
    told = _told(score, test, sorted(learned) or range(model.spec.classes or 0))
    scored = partial(_least_strange, score, told)
    normal = _rows_of(scored, test)
    return {f"auroc_{name}": auroc(normal, _rows_of(scored, other)) for name, other in strange.items()}


def _told(score: RowTask, test: Source, classes: Sequence[int]) -> Sequence[int | None]:
    """The classes to score under: none where the model can do without, else all it learned."""
    try:
        score(Batch(test.take(0, 1).x), torch.zeros(1, dtype=torch.int64))
    except RequestError as error:
        if error.field != "label":
            raise
        return classes
    return [None]


def _least_strange(score: RowTask, classes: Sequence[int | None], batch: Batch, seeds: Tensor) -> Tensor:
    """The score of each row under the class that suits it best. -> (B,)"""
    labels = (None if each is None else torch.full_like(seeds, each) for each in classes)
    return torch.stack([score(Batch(batch.x, label), seeds) for label in labels]).amin(dim=0)


def _check_shape(ours: DataSpec, theirs: DataSpec) -> None:
    if ours.shape != theirs.shape:
        raise DataError(
            f"The data to compare with has samples of shape {theirs.shape}, the model's of {ours.shape}. Prepare it "
            f"in that shape, e.g. kinfolk data prepare patches --set size={ours.shape[-1]}, or a folder with --set "
            "size and channels."
        )
