"""What importing does (nothing), and what stands between the layers."""

import ast
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAMILIES = sorted(point.value for point in entry_points(group="kinfolk.families") if "kinfolk_families" in point.value)
MODULES = sorted(
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    for root in (ROOT / "platform", ROOT / "families", ROOT / "pipelines")
    for path in root.rglob("*.py")
    if path.relative_to(root).parts[0].startswith("kinfolk") and "__main__" not in path.name
)

_WATCH = """
import os, socket, sys, threading, logging, json
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[1], str) and any(letter in args[1] for letter in "wax+"):
        opened.append(str(args[0]))
    if event in ("socket.connect", "os.mkdir", "subprocess.Popen"):
        opened.append(f"{event} {args}")
"""


def python(code, *names):
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *names], capture_output=True, text=True, cwd=ROOT, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_standard_platform_module_is_not_shadowed():
    assert not (ROOT / "platform" / "__init__.py").exists()
    found = python("import sys, json; sys.path.insert(0, '.'); import platform; print(json.dumps(platform.__file__))")
    assert Path(found).parent.name.startswith("python3")
    assert not Path(found).is_relative_to(ROOT / "platform")


@pytest.mark.parametrize("entry", FAMILIES)
def test_a_family_loads_without_ray_mlflow_or_the_rest_of_the_platform(entry):
    code = (
        "import sys, json, importlib; importlib.import_module(sys.argv[1].split(':')[0]);"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = python(code, entry)
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"ray", "mlflow", "dvc", "fastapi", "boto3", "pyarrow"}
    ours = {name for name in loaded if name.startswith("kinfolk.")}
    assert ours <= {"kinfolk.contract", "kinfolk.rng", "kinfolk.errors"}


def test_the_loop_and_a_family_run_without_ray_mlflow_and_pyarrow():
    code = """
import sys, json
for name in ("ray", "mlflow", "pyarrow", "fastapi", "boto3", "dvc", "PIL", "sklearn"):
    sys.modules[name] = None
import torch
from kinfolk.config import Training
from kinfolk.contract import DataSpec
from kinfolk.data.source import TensorSource
from kinfolk.training.loop import build, prepare, train
from kinfolk_families.gan import FAMILY
spec = DataSpec(kind="image", shape=(1, 8, 8), levels=17)
source = TensorSource(spec, torch.zeros(64, 1, 8, 8, dtype=torch.uint8))
state = prepare(build(FAMILY, FAMILY.config(), spec, 0), Training(samples=32, batch_size=16))
print(json.dumps([report.kind for report in train(state, source, Training(samples=32, batch_size=16), 0)]))
"""
    assert python(code)[-1] == "checkpoint"


def test_importing_every_module_touches_nothing():
    code = (
        _WATCH
        + """
import importlib
level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
heavy = [importlib.import_module(name) for name in ("torch", "ray", "ray.train", "ray.train.torch", "ray.serve",
         "fastapi", "pydantic_settings", "typer", "rich.progress", "safetensors.torch", "yaml", "PIL.Image",
         "pyarrow.parquet", "multiprocessing", "sklearn")]
environment, threads = dict(os.environ), threading.active_count()
sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
import torch
print(json.dumps({"opened": opened, "environment": dict(os.environ) != environment,
    "threads": threading.active_count() - threads, "cuda": torch.cuda.is_initialized(),
    "handlers": logging.getLogger().handlers != handlers}))
"""
    )
    seen = python(code, *MODULES)
    assert seen == {"opened": [], "environment": False, "threads": 0, "cuda": False, "handlers": False}


def test_the_layers_keep_their_direction():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


OWNERS = {
    "ray.train": "kinfolk.training",
    "ray.tune": "kinfolk.tuning",
    "ray.serve": "kinfolk.serving",
    "fastapi": "kinfolk.serving",
    "mlflow": "kinfolk.tracking",
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_each_library_has_one_owner():
    for name in MODULES:
        path = next(
            p for p in (ROOT / "platform", ROOT / "families", ROOT / "pipelines") if (p / name.split(".")[0]).exists()
        )
        file = path.joinpath(*name.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        for imported in imports(file):
            for library, owner in OWNERS.items():
                if imported == library or imported.startswith(f"{library}."):
                    assert name.startswith(owner), f"{name} imports {imported}, which belongs to {owner}"
