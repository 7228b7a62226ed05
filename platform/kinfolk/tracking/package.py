"""A bundle inside an MLflow model: packed without code or pickle, and checked before anything of it is used.

Whoever can write to the artifact store can edit ``MLmodel``, and MLflow would import the module or run the code it
names. So ``bundle_in`` reads it as data, and the bundle itself is compared with the hash that the registry holds.
"""

import hashlib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from kinfolk.contract import DataSpec
from kinfolk.errors import IntegrityError
from kinfolk.manifest import MANIFEST, verify_sealed

LOADER = "kinfolk.tracking.loader"
_BUNDLE = "data/bundle"
_FLAVOR = "python_function"
_HARMLESS = {"data", "loader_module", "env", "python_version", "streamable", "code", "config"}


def pack(bundle: Path, scratch: Path, model_id: str, run_id: str) -> None:
    """Write ``bundle`` as an MLflow model into ``scratch / "model"``, with no code and no pickle in it."""
    from mlflow import pyfunc
    from mlflow.models import Model

    link = scratch / Path(_BUNDLE).name  # MLflow keeps the last part of the path
    link.symlink_to(bundle.resolve())
    spec = DataSpec.model_validate_json((bundle / "spec.json").read_bytes())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)  # the signature says it
        pyfunc.save_model(
            str(scratch / "model"),
            loader_module=LOADER,
            data_path=str(link),
            mlflow_model=Model(model_uuid=model_id, model_id=model_id, run_id=run_id),
            signature=_signature(spec),
            pip_requirements=[f"kinfolk=={version('kinfolk')}", f"mlflow=={version('mlflow')}"],
            uv_project_path=str(bundle),  # holds no uv project; otherwise MLflow copies the working directory's
        )


def _signature(spec: DataSpec) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    columns = [ColSpec(DataType.long, "seed")]
    if spec.classes is not None:
        columns.append(ColSpec(DataType.long, "label", required=False))
    params = [ParamSpec("n", DataType.long, 1), ParamSpec("options", DataType.string, "{}")]
    samples = TensorSpec(np.dtype(np.float32), (-1, *spec.shape))
    return ModelSignature(Schema(columns), Schema([samples]), ParamSchema(params))


def bundle_in(folder: Path, manifest_sha256: str) -> Path:
    """The bundle of a downloaded MLflow model, once everything about it has been checked.

    Raises:
        IntegrityError: MLmodel would load other code than Kinfolk's, or the bundle is not the one registered.
    """
    _check_mlmodel(folder / "MLmodel")
    verify_bundle(folder / _BUNDLE, manifest_sha256)
    return folder / _BUNDLE


def _check_mlmodel(path: Path) -> None:
    try:
        flavors = yaml.safe_load(path.read_bytes())["flavors"]
        flavor = flavors[_FLAVOR]
        strange = sorted(flavors.keys() - {_FLAVOR} | flavor.keys() - _HARMLESS)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        raise IntegrityError(f"{path} is missing or is no MLmodel of a Kinfolk model.") from None
    wanted = {"loader_module": LOADER, "data": _BUNDLE, "code": None}
    wrong = [f"{key} is {flavor.get(key)!r}" for key, value in wanted.items() if flavor.get(key) != value]
    wrong += [f"{name} is there" for name in strange]
    if wrong:
        raise IntegrityError(
            f"{path} was not written by Kinfolk: {', '.join(wrong)[:300]}. Nothing of it was loaded; register again."
        )


def verify_bundle(bundle: Path, manifest_sha256: str) -> None:
    """Check that ``bundle`` holds the files of the manifest with this sha256, unaltered, and no others.

    Raises:
        IntegrityError: it does not; the first file is named.
    """
    sums = verify_sealed(bundle)
    if (got := manifest_digest(bundle)) != manifest_sha256:
        raise IntegrityError(
            f"{bundle / MANIFEST} is not the one registered: sha256 is {got[:12]}, the registry says "
            f"{manifest_sha256[:12]}. Register the model again."
        )
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if not path.is_dir() or path.is_symlink()}
    if strange := sorted(files - sums.keys() - {MANIFEST}):
        raise IntegrityError(f"{bundle / strange[0]} is not in {MANIFEST}: it was added after registering.")


def manifest_digest(bundle: Path) -> str:
    """Hexadecimal sha256 of a bundle's manifest, which names every file's own."""
    return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
