"""The part of OpenAI's images API that fits models told a class: its clients draw from them as they are.

Source: https://platform.openai.com/docs/api-reference/images/create.
"""

import base64
import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kinfolk.contract import DataSpec, RequestError
from kinfolk.errors import SHOWN, nearest
from kinfolk.pictures import picturable

ADDRESS = "/v1/images/generations"
_MOST = 10  # pictures of one request, as in the original
_PROMPT_CHARACTERS = 32_000


class ImagesRequest(BaseModel):
    """A request; what else it holds are settings of the model, such as ``seed`` and ``steps``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    prompt: str = Field(max_length=_PROMPT_CHARACTERS)
    model: str | None = None
    n: int | None = Field(1, ge=1, le=_MOST, strict=True)
    size: str | None = "auto"
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    stream: Literal[False] | None = None
    quality: str | None = None  # this and what follows has no meaning here, and clients send it
    background: Literal["auto", "opaque"] | None = None
    moderation: str | None = None
    style: str | None = None
    user: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the model."""
        return dict(self.model_extra or {})


def parse(values: Mapping[str, Any]) -> ImagesRequest:
    """The request that a body holds.

    Raises:
        RequestError: a field is missing or not what it must be.
    """
    try:
        return ImagesRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        raise RequestError(name, f"{name}: {first['msg']}.") from None


def model_name(asked: ImagesRequest, known: Sequence[str]) -> str:
    """The model that is meant, which may be left out where there is only one.

    Raises:
        RequestError: it is not served, or was left out.
    """
    if asked.model in known:
        return str(asked.model)
    if asked.model is None and len(known) == 1:
        return known[0]
    if asked.model is None:
        raise RequestError("model", f"Say which model: {', '.join(known) or 'none is served'}.")
    name = asked.model[:SHOWN]
    raise RequestError("model", f"No model is served as {name!r}.{nearest(name, known)} Models: {', '.join(known)}.")


def class_in(prompt: str, conditions: Collection[str], classes: int) -> int | None:
    """The class that a prompt names by its number; None of an empty prompt, for any class.

    Raises:
        RequestError: it names none or several, or the model is told nothing.
    """
    if not prompt.strip():
        return None
    if "label" not in conditions:
        raise RequestError("prompt", "This model is told nothing of what to draw: leave the prompt empty.")
    named = {int(number) for number in re.findall(r"(?<!\d)\d{1,9}(?!\d)", prompt)}
    if len(named) != 1 or (label := named.pop()) >= classes:
        raise RequestError(
            "prompt", f"This model draws classes 0 to {classes - 1}: name one by its number, e.g. 'a {classes - 1}'."
        )
    return label


def settings_for(asked: ImagesRequest, conditions: Collection[str], spec: DataSpec) -> dict[str, Any]:
    """The settings of the model's own ``sample`` that the request comes to.

    Raises:
        RequestError: the prompt or the size is not one that the model can serve.
    """
    if spec.kind != "image" or not picturable(spec):
        what = f"{spec.kind} samples of shape {spec.shape}"
        raise RequestError("model", f"This model draws {what}, not pictures: use its own address.")
    size = f"{spec.shape[-1]}x{spec.shape[-2]}"
    if asked.size not in (None, "auto", size):
        raise RequestError("size", f"size={asked.size[:SHOWN]!r}: this model draws {size}. Use that, or auto.")
    label = class_in(asked.prompt, conditions, spec.classes or 0)
    told = {} if label is None else {"label": label}
    return {**asked.settings, **told, "n": asked.n or 1}


def answer(asked: ImagesRequest, pictures: Sequence[bytes]) -> dict[str, Any]:
    """PNG files as the API tells them."""
    coded = [base64.b64encode(each).decode() for each in pictures]
    as_url = asked.response_format == "url"
    data = [{"url": f"data:image/png;base64,{each}"} if as_url else {"b64_json": each} for each in coded]
    return {"created": int(time.time()), "data": data}


def error(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """A refusal as the API tells it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
