"""A model as a sealed folder of safetensors and JSON: what is registered, fetched and served. No pickle.

``config.json`` names the family and holds its config and what the weights were trained on; ``spec.json`` is the
DataSpec; ``model.safetensors`` the weights; ``parents/NAME/`` the same again for each parent.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kinfolk.config import parse
from kinfolk.contract import DataSpec, Model
from kinfolk.errors import IntegrityError
from kinfolk.families import find_family
from kinfolk.manifest import verify_sealed, write_sealed

FORMAT = 1
CARD = "card.json"
REFERENCE = "reference.safetensors"


def _files(model: Model, prefix: str = "") -> dict[str, bytes]:
    config = {"format": FORMAT, "family": model.family.name, "config": model.config.model_dump(mode="json")}
    state = {name: value.detach().cpu().contiguous() for name, value in model.module.state_dict().items()}
    files = {
        f"{prefix}config.json": json.dumps(config, indent=1).encode(),
        f"{prefix}spec.json": model.spec.model_dump_json(indent=1).encode(),
        f"{prefix}model.safetensors": save(state),
    }
    for name, parent in model.parents.items():
        files |= _files(parent, f"{prefix}parents/{name}/")
    return files


def save_bundle(
    model: Model, folder: Path, extra: Mapping[str, Any] | None = None, reference: bytes | None = None
) -> None:
    """Write ``model`` with its parents as a sealed folder; ``extra`` (JSON) goes into ``card.json``.

    ``reference`` is what ``reference_file`` makes of the model, for those who load it to compare with.
    """
    files = _files(model)
    if reference is not None:
        files[REFERENCE] = reference
    if extra is not None:
        files[CARD] = json.dumps(extra, indent=1, default=str).encode()
    write_sealed(folder, files)


def load_bundle(folder: Path) -> Model:
    """Build the model of a sealed folder on the CPU, in eval mode.

    Raises:
        IntegrityError: a file is torn or altered, or the weights do not fit the network the config describes.
        ConfigError: its family is not installed here.
    """
    verify_sealed(folder)
    return _load(folder)


def _load(folder: Path) -> Model:
    header = json.loads((folder / "config.json").read_bytes())
    if header.get("format") != FORMAT:
        raise IntegrityError(
            f"{folder / 'config.json'} has format {header.get('format')}; this version reads {FORMAT}."
        )
    family = find_family(header["family"])
    spec = DataSpec.model_validate_json((folder / "spec.json").read_bytes())
    config = parse(family.config, header["config"], f"{folder / 'config.json'}")
    names = sorted(path.name for path in (folder / "parents").glob("*"))
    parents = {name: _load(folder / "parents" / name) for name in names}
    module = family.build(config, spec, parents)
    load_weights(module, folder / "model.safetensors")
    return Model(family, config, spec, module.eval().requires_grad_(False), parents)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill ``module`` from a safetensors file whose header is compared before a tensor is read.

    Raises:
        IntegrityError: the file cannot be read, or names, shapes or dtypes differ; the first difference is named.
    """
    expected = {name: (list(value.shape), value.dtype) for name, value in module.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if missing := sorted(expected.keys() ^ shapes.keys()):
            raise IntegrityError(f"{path} does not fit the network: {missing[0]!r} is on one side only.")
        for name, (shape, _) in expected.items():
            if shapes[name] != shape:
                raise IntegrityError(f"{path}: {name} has shape {shapes[name]}, the network wants {shape}.")
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}.") from None
    for name, (_, dtype) in expected.items():
        if state[name].dtype != dtype:
            raise IntegrityError(f"{path}: {name} is {state[name].dtype}, the network wants {dtype}.")
        if not state[name].isfinite().all():
            raise IntegrityError(f"{path}: {name} holds values that are not finite.")
    module.load_state_dict(state)
