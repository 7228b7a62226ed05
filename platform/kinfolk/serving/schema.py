"""The body of a sampling request, made from what the model in service can do, and checked into a request."""

import secrets
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

from kinfolk.contract import DataSpec, Model, RequestError, SampleRequest, Tasks
from kinfolk.errors import nearest
from kinfolk.sampling import make_request

_SEEDS = 2**32  # range of the seeds drawn for callers who give none; any JSON reader holds them exactly
_LARGEST_SEED = 2**62 - 1
_SHOWN = 60  # characters of a refused value that an error repeats


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request with the seed it runs on, given or drawn."""

    request: SampleRequest
    seed: int


_Count = Annotated[int, Field(strict=True)]  # true and "3" are not numbers of samples


def body_model(tasks: Tasks, spec: DataSpec, max_n: int) -> type[BaseModel]:
    """The request body as a pydantic model: ``n``, ``seed``, ``label`` if the model has classes, its own options."""
    seed = Field(
        None, ge=0, le=_LARGEST_SEED, description="Sample i is sample 0 of seed + i. Left out: drawn, and told."
    )
    fields: dict[str, Any] = {
        "n": (_Count, Field(1, ge=1, le=max_n, description="How many samples.")),
        "seed": (_Count | None, seed),
    }
    if "label" in tasks.conditions:
        one = Annotated[int, Field(strict=True, ge=0, lt=spec.classes)]
        text = "The class of all samples, or one for each. Left out: each sample's class follows from its seed."
        fields["label"] = (one | list[one] | None, Field(None, description=text))
    defaults, task_of = tasks.options.model_dump(), tasks.options.task_of
    for name, field in type(tasks.options).model_fields.items():
        if task_of.get(name, "sample") != "sample":
            continue
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        fields[name] = (annotation, Field(defaults[name], description=field.description))
    return create_model("Sample", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def parse_body(body: bytes, kind: type[BaseModel]) -> dict[str, Any]:
    """The settings in a request body; an empty body is a request with nothing but defaults.

    Raises:
        RequestError: the body is no JSON object (field ``body``), or a setting is unknown or not allowed.
    """
    try:
        values = from_json(body, allow_inf_nan=False) if body.strip() else {}
    except ValueError as error:
        raise RequestError("body", f"The body is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise RequestError("body", f"The body must be a JSON object of settings, got {_short(values)}.")
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, kind) from None
    return values


def _refusal(error: ValidationError, kind: type[BaseModel]) -> RequestError:
    errors: Any = error.errors(include_url=False)
    name = errors[0]["loc"][0]
    if errors[0]["type"] == "extra_forbidden":
        known = sorted(kind.model_fields)
        text = f"This model has no setting {_short(name)}.{nearest(name, known)} Its settings: {', '.join(known)}."
        return RequestError(name[:_SHOWN], text)
    deepest = max((item for item in errors if item["loc"][0] == name), key=lambda item: len(item["loc"]))
    return RequestError(name, f"{name}: {deepest['msg']} (got {_short(deepest['input'])}).")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def ask(model: Model, values: dict[str, Any]) -> Asked:
    """The request that checked settings ask for; a seed is drawn if none is given.

    Raises:
        RequestError: an option or label that this model cannot serve.
    """
    options = {key: value for key, value in values.items() if key not in ("n", "seed", "label")}
    seed = values.get("seed")
    seed = secrets.randbelow(_SEEDS) if seed is None else seed
    return Asked(make_request(model, values.get("n", 1), seed, values.get("label"), options), seed)
