"""Endpoints asked for all that their OpenAPI schemas allow, and for all that they do not: does one fail?

    python pipelines/benchmarks/serve_fuzz.py BUNDLE [BUNDLE ...] [--cases 5000]

Schemathesis makes requests from the schema of every model and of the root, half of them by it and half against it, on
a real Serve behind HAProxy. A server error is a fault, as is a refusal that does not say which field is wrong, shows
a path or a trace, or comes without Retry-After where it should have it. Prints a table in Markdown, and ends with 1 if
there was one.
"""

import argparse
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from kinfolk.serving.config import Limits, ServedModel
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.serving_measured import Server, serving

LIMITS = Limits(max_n=16, max_evaluations=256, max_evaluations_queued=1024, request_timeout_s=20)
LEAK = re.compile(r"Traceback|File \"|site-packages|/(?:tmp|root|home|usr)/")


def wrong(response: Any) -> str | None:
    """What is wrong with an answer."""
    status, text = response.status_code, response.text if response.status_code >= 400 else ""
    if status >= 500 and status not in (503, 504):
        return f"{status}"
    if LEAK.search(text):
        return f"{status} shows what is inside"
    if status in (429, 503) and "retry-after" not in response.headers:
        return f"{status} without Retry-After"
    if status == 422 and response.json()["error"]["field"] is None:
        return "422 names no field"
    return None


def operations(server: Server, paths: list[str]) -> Iterator[tuple[str, Any]]:
    """Every operation of the schemas at ``paths``, by the address it is at."""
    for path in paths:
        schema: Any = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}{path}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            yield f"{operation.method.upper()} {path}{operation.path}", operation


def ask(operation: Any, base: str, mode: GenerationMode, cases: int) -> tuple[Counter[int], Counter[str]]:
    """Statuses of so many requests, and what was wrong with them."""
    statuses: Counter[int] = Counter()
    faults: Counter[str] = Counter()

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        response = case.call(base_url=base)
        statuses[response.status_code] += 1
        if fault := wrong(response):
            faults[f"{fault}: {str(case.body)[:100]}"] += 1

    one()
    return statuses, faults


def _takes_a_body(operation: Any) -> bool:
    return "requestBody" in operation.definition.raw


def measure(server: Server, paths: list[str], cases: int) -> tuple[int, Counter[str]]:
    """Ask every operation; how many requests, and the faults."""
    found = list(operations(server, paths))
    each = -(-cases // (2 * sum(_takes_a_body(operation) for _, operation in found)))
    total, faults = 0, Counter[str]()
    for name, operation in found:
        base = f"http://127.0.0.1:{server.port}{name.split(' ')[1].removesuffix(operation.path)}"
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                statuses, wrong_ = ask(operation, base, mode, each if _takes_a_body(operation) else 5)
            except Exception as error:  # nothing can be made against the schema of what takes nothing
                print(f"| {name} | {mode.value} | 0 | {type(error).__name__} | |")
                continue
            total += sum(statuses.values())
            faults += Counter({f"{name}: {fault}": count for fault, count in wrong_.items()})
            told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
            print(f"| {name} | {mode.value} | {sum(statuses.values())} | {told} | {sum(wrong_.values())} |", flush=True)
    return total, faults


@plain_mistakes
def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--cases", type=int, default=6000)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="schemathesis|hypothesis|requests|urllib3")
    models = [
        ServedModel(name=f"m{number}", bundle=bundle, num_cpus=0.1, max_rows=16, limits=LIMITS)
        for number, bundle in enumerate(arguments.bundles)
    ]
    print("| operation | requests that are | number | answers | faults |\n|---|---|---|---|---|")
    with serving(models) as server:
        total, faults = measure(server, ["", *(model.path for model in models)], arguments.cases)
    print(f"\n{total} requests, {sum(faults.values())} faults.")
    for fault, count in faults.most_common(20):
        print(f"- {count} x {fault}")
    if faults or total < arguments.cases:
        sys.exit(1)


if __name__ == "__main__":
    main()
