"""The body of a request, made from what a model can be asked for, and checked into what the batcher takes."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model
from pydantic_core import from_json
from torch import Tensor

from kinfolk import sampling
from kinfolk.abilities import Ability
from kinfolk.contract import DataSpec, Model, RequestError, SampleRequest
from kinfolk.errors import SHOWN, nearest
from kinfolk.serving.rows import RowRequest
from kinfolk.serving.uploads import read_mask, read_samples

_SEEDS = 2**32  # range of the seeds drawn for callers who give none; any JSON reader holds them exactly
_LARGEST_SEED = 2**62 - 1
_LARGEST_NOISE = 1e6
_WAY = 8  # samples on a way between two seeds, where their number is left out
_OWN = ("n", "seed", "seeds", "label", "seed_to", "x", "mask")  # what is no option of a sampler


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request with the seed of its first row, given or drawn."""

    request: SampleRequest | RowRequest
    seed: int
    repeatable: bool  # the seed was given, so that the same body asks for the same again


_Whole = Annotated[int, Field(strict=True)]  # true and "3" are not numbers of samples
_Seed = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_SEED)]
_NUMBERS = {"type": "array", "items": {}}
_Given = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string", "contentEncoding": "base64"}, _NUMBERS]})]


def body_model(model: Model, ability: Ability, max_n: int) -> type[BaseModel]:
    """The request body of one task as a pydantic model; what the model has no use for is no field of it."""
    tasks, fields = model.tasks, _given_fields(ability)
    fields["seed"] = (_Seed | None, Field(None, description=_SEED_TEXT if ability.samples else _ROW_SEED_TEXT))
    if ability.samples:
        text = "How many samples. Left out: as many as are given, 8 on a way, else 1."
        fields["n"] = (_Whole | None, Field(None, ge=1, le=max_n, description=text))
        several = Annotated[list[_Seed], Field(min_length=1, max_length=max_n)]
        fields["seeds"] = (several | None, Field(None, description="A seed for each sample, in place of seed and n."))
    if "label" in tasks.conditions:
        one = Annotated[int, Field(strict=True, ge=0, lt=model.spec.classes)]
        text = "The class of all samples, or one for each. Left out: each sample's class follows from its seed."
        fields["label"] = (one | list[one] | None, Field(None, description=text if ability.samples else _CLASS_TEXT))
    if ability.samples:
        fields |= _options(model, ability)
    return create_model(ability.name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


_SEED_TEXT = "Sample i is sample 0 of seed + i. Left out: drawn, and told."
_ROW_SEED_TEXT = "Of what is drawn for each sample, where anything is. Left out: 0."
_CLASS_TEXT = "The class of all that is given, or one for each."


def _given_fields(ability: Ability) -> dict[str, Any]:
    """What the task needs beside seeds."""
    fields: dict[str, Any] = {}
    if "x" in ability.needs:
        text = "A file in base64 (PNG, JPEG, WebP where samples are pictures; .npy), several, or numbers."
        fields["x"] = (_Given, Field(description=text))
    if "mask" in ability.needs:
        fields["mask"] = (_Given, Field(description="As x: white where x is given, black where it is asked for."))
    if "seed_to" in ability.needs:
        fields["seed_to"] = (_Seed, Field(description="The seed at the other end of the way."))
    if ability.rows_with_noise is not None:
        text = "Standard deviation of the noise in x, of data in [-1, 1]."
        fields["noise_level"] = (float, Field(gt=0, le=_LARGEST_NOISE, strict=True, description=text))
    return fields


def _options(model: Model, ability: Ability) -> dict[str, Any]:
    """The family's options that this task reads, with this model's defaults."""
    tasks, fields = model.tasks, {}
    defaults, task_of = tasks.options.model_dump(), tasks.options.task_of
    for name, field in type(tasks.options).model_fields.items():
        if task_of.get(name, ability.name) == ability.name:
            annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            fields[name] = (annotation, Field(defaults[name], description=field.description))
    return fields


def parse_json(body: bytes) -> dict[str, Any]:
    """The settings in a JSON body; an empty body is a request with nothing but defaults.

    Raises:
        RequestError: the body is no JSON object (field ``body``).
    """
    try:
        values = from_json(body, allow_inf_nan=False) if body.strip() else {}
    except ValueError as error:
        raise RequestError("body", f"The body is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise RequestError("body", f"The body must be a JSON object of settings, got {_short(values)}.")
    return values


def check_values(values: Mapping[str, Any], kind: type[BaseModel]) -> None:
    """Refuse settings that the task does not have or allow.

    Raises:
        RequestError: with the first of them.
    """
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _refusal(error: ValidationError, kind: type[BaseModel]) -> RequestError:
    errors: Any = error.errors(include_url=False)
    name = errors[0]["loc"][0]
    if errors[0]["type"] == "extra_forbidden":
        known = sorted(kind.model_fields)
        text = f"{kind.__name__} has no setting {_short(name)}.{nearest(name, known)} Its settings: {', '.join(known)}."
        return RequestError(name[:SHOWN], text)
    if errors[0]["type"] == "missing":
        return RequestError(name, f"{name}: {kind.__name__} needs it. {kind.model_fields[name].description}")
    deepest = max((item for item in errors if item["loc"][0] == name), key=lambda item: len(item["loc"]))
    return RequestError(name, f"{name}: {deepest['msg']} (got {_short(deepest['input'])}).")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def ask(model: Model, ability: Ability, values: Mapping[str, Any], max_n: int) -> Asked:
    """The request that checked settings ask for; a seed is drawn if none is given and anything is to be drawn.

    Raises:
        RequestError: an option, a label or a given sample that this model cannot serve.
    """
    given = {name: values[name] for name in _OWN if values.get(name) is not None}
    x = None if ability.takes is None else read_samples("x", given.get("x"), ability.takes, max_n)
    if not ability.samples:
        assert x is not None
        return _ask_rows(model, ability, given, x, values.get("noise_level"))
    usual = _WAY if "seed_to" in ability.needs else 1 if x is None else len(x)
    n, seed = _first_seed(given, usual)
    options = {name: value for name, value in values.items() if name not in _OWN}
    request = sampling.make_request(model, n, seed, given.get("label"), options, ability.name)
    if "seeds" in given:
        request = replace(request, seeds=torch.tensor(given["seeds"], dtype=torch.int64))
    request = _with_given(model.spec, request, ability, given, x, max_n)
    return Asked(request, seed, "seed" in given or "seeds" in given)


def _first_seed(given: Mapping[str, Any], usual: int) -> tuple[int, int]:
    """How many samples, and the seed of the first."""
    if "seeds" in given:
        if in_vain := [name for name in ("n", "seed") if name in given]:
            raise RequestError(in_vain[0], f"seeds says how many and which: leave {in_vain[0]} out.")
        return len(given["seeds"]), given["seeds"][0]
    n, seed = given.get("n", usual), given.get("seed")
    return n, secrets.randbelow(_SEEDS) if seed is None else seed


def _with_given(
    spec: DataSpec, request: SampleRequest, ability: Ability, given: Mapping[str, Any], x: Tensor | None, max_n: int
) -> SampleRequest:
    if "seed_to" in ability.needs:
        request = sampling.interpolating(request, given["seed_to"])
    if x is None:
        return request
    x = x.expand(len(request.seeds), *x.shape[1:]) if len(x) == 1 else x
    if "mask" not in ability.needs:
        return sampling.given(request, spec, x)
    mask = read_mask("mask", given.get("mask"), spec, max_n)
    return sampling.completing(request, spec, x, mask[0] if len(mask) == 1 else mask)


def _ask_rows(model: Model, ability: Ability, given: Mapping[str, Any], x: Tensor, noise_level: float | None) -> Asked:
    seed, label = given.get("seed", 0), sampling.labels_of(model, given.get("label"), len(x))
    task = ability.rows
    if ability.rows_with_noise is not None:
        assert noise_level is not None
        task = ability.rows_with_noise(noise_level)
    assert task is not None
    return Asked(RowRequest(ability.name, task, x, sampling.row_seeds(seed, len(x)), label, noise_level), seed, True)
