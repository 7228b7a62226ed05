"""SIGKILL of a sweep's driver at half time, on a cluster that lives on: what is left, and what `--resume` does.

A sweep of digits/dcgan in which one trial in five, by chance, cannot but diverge. The driver is killed once half of the
trials have ended. Then it is looked for placement groups, actors and processes of the sweep, and the sweep is gone on
with: no trial that had ended may be run again, and all the others must end.
Run: python pipelines/benchmarks/sweep_resume.py [trials]
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from kinfolk.cluster import free_port
from kinfolk_pipelines.scripts import plain_mistakes

CPUS, SAMPLES = 2, 12800
_LEAVE_TIMEOUT_S = 60.0  # that what belongs to a dead driver may take to go
SWEEP = {
    "recipe": "digits/dcgan",
    "fixed": {"model.generator.width": 16, "model.critic.width": 16},
    "space": {
        "model.critic_optimizer.lr": {"kind": "log_uniform", "low": 0.0001, "high": 0.001},
        "model.generator_optimizer.lr": {"kind": "choice", "values": [0.0002, 0.0005, 0.001, 0.002, 1e30]},
    },
    "parallel": CPUS,
    "budget": {"samples": SAMPLES},
    "evaluation_samples": 200,
    "objective": {"metric": "generator/loss", "mode": "min"},
}


@contextmanager
def cluster(environment: Mapping[str, str]) -> Any:
    """A Ray cluster of its own, on the loopback interface."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", f"--num-cpus={CPUS}", "--disable-usage-stats"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield head, f"127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def trials(state: Path) -> dict[str, dict[str, Any]]:
    """The ledger's trials by name."""
    found = {}
    for path in sorted(state.glob("sweeps/*/trials/*.json")):
        found[path.stem] = json.loads(path.read_text())
    return found


def ended(state: Path) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in trials(state).items() if each["status"] in ("finished", "stopped", "failed")}


def trained(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a trial's record is of its training; MLflow may hear of it later."""
    return {key: value for key, value in record.items() if key not in ("told", "run_id")}


def start(environment: Mapping[str, str], folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """`kinfolk tune` in a process of its own."""
    code = "from kinfolk_pipelines.cli import main; main()"
    command = [sys.executable, "-c", code, "tune", str(folder / "sweep.yaml"), "-o", str(folder / "sweep.html"), *more]
    return subprocess.Popen(command, env=environment)


def left_behind(head: psutil.Process, address: str) -> dict[str, int]:
    """Placement groups, actors and processes of trials that are still there, after some time to go."""
    import ray
    from ray.util import placement_group_table
    from ray.util.state import list_actors

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    give_up = time.monotonic() + _LEAVE_TIMEOUT_S
    try:
        while True:
            found = {
                "placement groups": sum(group["state"] != "REMOVED" for group in placement_group_table().values()),
                "actors": len(list_actors(address=address, filters=[("state", "!=", "DEAD")])),
                "processes": sum("ImplicitFunc" in title(each) for each in head.children(recursive=True)),
            }
            if not any(found.values()) or time.monotonic() > give_up:
                return found
            time.sleep(1)
    finally:
        ray.shutdown()


def title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kill_at_half(driver: subprocess.Popen[bytes], state: Path, count: int) -> dict[str, dict[str, Any]]:
    """SIGKILL the driver once half of the trials have ended; those that had, as they were recorded."""
    while len(ended(state)) < count // 2:
        if driver.poll() is not None:
            sys.exit("The driver ended before half of the trials had.")
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    return ended(state)


@plain_mistakes
def main(count: int) -> None:
    """Print what was counted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = folder / "state"
        (folder / "sweep.yaml").write_text(yaml.safe_dump({**SWEEP, "trials": count}))
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "KINFOLK_STATE": str(state)}
        environment |= {"KINFOLK_DATA": str(folder / "data")}
        os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster listens on the loopback interface alone
        with cluster(environment) as (head, address):
            time.sleep(10)
            environment["KINFOLK_RAY_ADDRESS"] = address
            before = kill_at_half(start(environment, folder), state, count)
            after_kill = left_behind(psutil.Process(head.pid), address)
            code = start(environment, folder, "--resume").wait()
            after = left_behind(psutil.Process(head.pid), address)
        final = trials(state)
        repeated = [name for name, each in before.items() if trained(final[name]) != trained(each)]
        print(
            f"trials: {len(final)} of {count}; ended before the kill: {len(before)}, of them run again: {len(repeated)}"
        )
        print(f"at the end: {dict(Counter(each['status'] for each in final.values()))}; exit code of --resume: {code}")
        print(f"left behind by the killed driver: {after_kill}; at the end: {after}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
