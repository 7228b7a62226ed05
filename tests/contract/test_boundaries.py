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
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        opened.append(str(args[0]))
    if event in ("socket.connect", "socket.bind", "os.mkdir", "os.rename", "os.remove", "subprocess.Popen",
                 "sqlite3.connect"):
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
from kinfolk.training.loop import train
from kinfolk.training.state import build, prepare
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
import importlib, signal, torch
def state():
    root = logging.getLogger()
    return {"environment": dict(os.environ), "threads": threading.active_count(), "cuda": torch.cuda.is_initialized(),
        "logging": (root.level, list(root.handlers), logging.root.manager.disable), "seed": torch.initial_seed(),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], "cwd": os.getcwd()}
heavy = [importlib.import_module(name) for name in ("torch", "ray", "ray.train", "ray.train.torch", "ray.serve",
         "fastapi", "pydantic_settings", "typer", "rich.progress", "safetensors.torch", "yaml", "PIL.Image",
         "pyarrow.parquet", "multiprocessing", "sklearn")]
before = state()
sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
after = state()
print(json.dumps({"opened": opened, "changed": [name for name in before if before[name] != after[name]]}))
"""
    )
    assert python(code, *MODULES) == {"opened": [], "changed": []}


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


def tree_of(name):
    roots = (ROOT / "platform", ROOT / "families", ROOT / "pipelines")
    path = next(root for root in roots if (root / name.split(".")[0]).exists()).joinpath(*name.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def imports(name):
    """Everything a module imports, wherever in it, as dotted names."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def dotted(node):
    """``a.b.c`` of an attribute or a name; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def test_each_library_has_one_owner():
    for name in MODULES:
        for imported in imports(name):
            for library, owner in OWNERS.items():
                if within(imported, library):
                    assert within(name, owner), f"{name} imports {imported}, which belongs to {owner}"


ALLOWED_IN_A_ROOM = (
    "abc", "collections", "contextlib", "copy", "dataclasses", "enum", "functools", "itertools", "math", "typing",
    "torch",
    "pydantic", "kinfolk.contract", "kinfolk.rng", "kinfolk.errors", "kinfolk_families._shared",
)  # fmt: skip


def test_a_room_knows_torch_the_contract_and_itself():
    """Neither the machine (os, pathlib, ...) nor another room, however late the import."""
    for name in (each for each in MODULES if within(each, "kinfolk_families")):
        room = ".".join(name.split(".")[:2])
        for imported in imports(name):
            allowed = (*ALLOWED_IN_A_ROOM, room)
            assert any(within(imported, each) for each in allowed), f"{name} imports {imported}"


def test_the_platform_holds_no_name_of_a_family():
    names = {point.name for point in entry_points(group="kinfolk.families")}
    assert len(names) >= 4
    for name in (each for each in MODULES if within(each, "kinfolk")):
        words = {
            node.value for node in ast.walk(tree_of(name)) if isinstance(node, ast.Constant) and node.value in names
        }
        assert not words, f"{name} names {words}"


UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "eval", "exec", "torch.manual_seed", "torch.seed", "os.getenv"}


def test_nothing_unpickles_evaluates_or_seeds_the_process():
    for name in MODULES:
        assert not {imported.split(".")[0] for imported in imports(name)} & (UNSAFE | {"random"}), name
        calls = [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.Call)]
        assert not {dotted(call.func) for call in calls} & UNSAFE_CALLS, name
        for keyword in (
            each for call in calls for each in call.keywords if each.arg in ("allow_pickle", "weights_only")
        ):
            assert keyword.value.value is (keyword.arg == "weights_only"), name


def test_the_environment_is_met_in_three_places():
    """Read by the settings alone; written for Ray, and handed on to the MLflow server."""
    met = {
        name
        for name in MODULES
        if any(dotted(node) == "os.environ" for node in ast.walk(tree_of(name))) or "os.environ" in imports(name)
    }
    assert met == {"kinfolk_pipelines.settings", "kinfolk.cluster", "kinfolk.tracking.server"}
