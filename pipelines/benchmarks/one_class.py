"""One class against the rest: a model of each digit alone, and how well its anomaly score tells the others.

Run: python pipelines/benchmarks/one_class.py [recipe] [workers]
"""

import statistics
import sys

from rich.console import Console

from kinfolk.tracking.connection import mlflow_environment
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.scripts import plain_mistakes
from kinfolk_pipelines.settings import apply_environment, load_settings
from kinfolk_pipelines.train import train


@plain_mistakes
def main() -> None:
    recipe, workers = (sys.argv[1:2] or ["mnist/one-class"])[0], int((sys.argv[2:3] or ["1"])[0])
    apply_environment(mlflow_environment())
    settings, console = load_settings(), Console(stderr=True)
    scores, seconds = [], []
    print(f"{recipe}, {workers} workers\n\n| digit | AUROC | training, s |\n|---|---|---|", flush=True)
    for digit in range(10):
        name = f"{recipe.replace('/', '-')}-{digit}"
        trained = train(settings, plan(settings, recipe, [f"keep_labels=[{digit}]"], name), console, workers=workers)
        metrics = evaluate(settings, trained.version.reference, samples=100).figures.metrics
        scores.append(metrics["auroc_rest"])
        seconds.append(trained.version.metrics["train_seconds"])
        print(f"| {digit} | {scores[-1]:.4f} | {seconds[-1]:.0f} |", flush=True)
    print(f"| mean | {statistics.mean(scores):.4f} | {statistics.mean(seconds):.0f} |")


if __name__ == "__main__":
    main()
