"""What a sweep shows: its table, what mattered, and the page, read back."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kinfolk.rng import generator
from kinfolk.tuning.ledger import Ledger, Trial
from kinfolk.tuning.space import drawn
from kinfolk.tuning.sweep import Sweep
from kinfolk_pipelines import sweep_plots as plots
from kinfolk_pipelines.sweep_display import display, line, shown_settings, table
from kinfolk_pipelines.sweep_importance import importance
from kinfolk_pipelines.sweep_plan import plan_sweep
from kinfolk_pipelines.sweep_report import basis, render

SPACE = {
    "model.lr": {"kind": "log_uniform", "low": 0.001, "high": 0.1},
    "model.width": {"kind": "choice", "values": [8, 16]},
    "model.gamma": {"kind": "uniform", "low": 0, "high": 1, "when": {"model.width": 16}},
}
SWEEP = Sweep.model_validate(
    {
        "name": "t",
        "recipe": "r",
        "space": SPACE,
        "trials": 4,
        "objective": {"metric": "fd_local", "mode": "min"},
        "constraints": ["coverage >= 0.5"],
    }
)


def trial(name, fd=None, status="finished", samples=64, coverage=0.9, **more):
    reports = [] if fd is None else [{"samples_seen": float(samples), "fd_local": fd, "coverage": coverage}]
    return Trial(name, {"model.lr": 0.01, "model.width": 8}, status=status, reports=reports, **more)


def many(count, judge, sweep=SWEEP):
    made = []
    for index in range(count):
        settings = drawn(sweep.space, generator(index))
        made.append(Trial(f"{index:03}", settings, status="finished"))
        made[-1].add({"samples_seen": 64.0, "fd_local": judge(settings), "coverage": 1.0})
    return made


def test_the_setting_that_decides_is_the_one_that_matters():
    found = importance(SWEEP, many(24, lambda settings: settings["model.lr"]))
    assert found.trials == 24
    assert next(iter(found.shares)) == "model.lr"
    assert found.shares["model.lr"] > 0.85
    assert sum(found.shares.values()) == pytest.approx(1.0)
    by_width = importance(SWEEP, many(24, lambda settings: settings["model.width"]))
    assert by_width.shares["model.width"] > 0.85  # gamma exists with one width alone, and is not blamed for it


def test_a_setting_that_has_one_value_wherever_it_exists_is_not_what_matters():
    fixed = {"kind": "fixed", "value": 7, "when": {"model.width": 16}}
    sweep = Sweep.model_validate({**SWEEP.model_dump(), "space": {**SPACE, "model.depth": fixed}})
    trials = many(24, lambda settings: settings["model.width"], sweep)
    found = importance(sweep, trials)
    assert "model.depth" not in found.shares
    assert found.shares["model.width"] > 0.85


def test_a_setting_that_exists_with_some_trials_matters_if_its_value_does():
    found = importance(SWEEP, many(60, lambda settings: settings.get("model.gamma", 0.5)))
    assert next(iter(found.shares)) == "model.gamma"


def test_an_early_stop_is_not_blamed_on_a_setting():
    trials = many(24, lambda settings: 1.0)
    for index, each in enumerate(trials):
        each.add({"samples_seen": 64.0 + index, "fd_local": 1.0 / (1 + index), "coverage": 1.0})
    found = importance(SWEEP, trials)
    forced = importance(SWEEP, many(24, lambda settings: settings["model.lr"]))
    assert max(found.shares.values()) < forced.shares["model.lr"]


def test_few_trials_say_nothing_and_failed_ones_do_not_count():
    trials = many(7, lambda settings: settings["model.lr"])
    failed = [trial(f"x{i}", status="failed", error="it broke") for i in range(9)]
    assert importance(SWEEP, [*trials, *failed]).shares == {}
    assert importance(SWEEP, [*trials, *failed]).trials == 7
    late = [trial(f"y{i}", fd=1.0, status="failed", error="it broke after a report") for i in range(9)]
    assert importance(SWEEP, [*trials, *late]).shares == {}
    assert importance(SWEEP, [*trials, *late]).trials == 7


@pytest.fixture
def planned(settings, tmp_path):
    import yaml

    (tmp_path / "sweeps" / "ring").mkdir(parents=True)
    given = {
        "recipe": "ring/blob",
        "space": {"model.optimizer.lr": SPACE["model.lr"]},
        "trials": 4,
        "report_every_samples": 32,
        "objective": {"metric": "fd_local", "mode": "min"},
        "constraints": ["coverage >= 0.5"],
    }
    (tmp_path / "sweeps" / "ring" / "rates.yaml").write_text(yaml.safe_dump(given))
    return plan_sweep(settings.model_copy(update={"sweeps": tmp_path / "sweeps"}), "ring/rates")


@pytest.fixture
def ledger(tmp_path):
    kept = Ledger(tmp_path, "d", seconds=12.0, starts=2)
    best = trial("000", 1.25)
    best.changes.append({"samples_seen": 32, "donor": "001", "before": {"model.lr": 0.5, "model.width": 8}})
    for each in (
        best,
        trial("001", 4.0, coverage=0.25),
        trial("002", 2.0, status="stopped", samples=32),
        trial("003", status="failed", error="<b>DivergenceError</b>"),
        trial("seed-0", 1.5, seed=1),
        trial("seed-1", 1.75, seed=2),
    ):
        kept.trials[each.id] = each
    for each in kept.trials.values():
        each.settings = {"model.optimizer.lr": each.settings["model.lr"]}
    best.changes[0]["before"] = {"model.optimizer.lr": 0.5}
    return kept


def cells(page):
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_the_page_says_what_came_of_it(planned, ledger):
    page = render(planned, ledger, ledger.trials["000"], None)
    rows = {row[0]: row for row in cells(page)}
    assert rows["000"][1:5] == ["1.25", "0.9", "64", "finished"]
    assert rows["001"][1:3] == ["(4)", "0.25"]
    assert rows["002"][3:5] == ["32", "stopped"]
    assert "2 finished, 1 stopped, 1 failed, in 12 s of 2 starts" in page
    assert "Trial 000 is best: fd_local 1.25" in page
    assert "median of trials that trained to the end is 2.625" in page
    assert "After 32 samples trial 000 went on from a copy of 001; before it had optimizer.lr=0.5" in page
    assert "4 trials" in page
    assert 'src="http' not in page
    assert "<script" not in page


def test_an_error_is_shown_as_text_in_the_table_of_failures(planned, ledger):
    page = render(planned, ledger, ledger.trials["000"], None)
    assert "&lt;b&gt;DivergenceError&lt;/b&gt;" in page
    assert "<b>Divergence" not in page


def test_what_a_monitor_said_is_shown_with_the_trial(planned, ledger):
    assert "Alarms" not in render(planned, ledger, ledger.trials["000"], None)
    ledger.trials["001"].alarms = ["Samples are <alike>.", "Losses grow."]
    page = render(planned, ledger, ledger.trials["000"], None)
    said = "Samples are &lt;alike&gt;. Losses grow."
    assert ["001", said, "optimizer.lr=0.01"] in cells(page[page.index("Alarms") :])


def outcome(planned, ledger, **changes):
    """The sentences about the best trial of a sweep with these entries."""
    sweep = planned.sweep.model_copy(update=changes)
    version = SimpleNamespace(reference="ring-blob/1")
    return basis(replace(planned, sweep=sweep), ledger, [], ledger.trials["000"], version)


def test_what_was_trained_anew_is_not_said_to_be_what_was_measured(planned, ledger):
    assert outcome(planned, ledger)[-1].endswith("is best: fd_local 1.25. Registered as ring-blob/1.")
    assert outcome(planned, ledger, finish="retrain")[-1].endswith(
        "is best: fd_local 1.25. Registered as ring-blob/1 is another training with its settings, of 64 samples, "
        "which was not measured here."
    )


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("fd_local", "measured on at most 1,000 samples of the averaged weights."),
        ("modes", "counted in as many samples of the averaged weights as the data set's rule asks for."),
        ("gaussian/loss", "a mean over the training since the report before."),
    ],
)
def test_the_page_says_what_a_figure_rests_on(planned, ledger, metric, says):
    ledger.trials["000"].reports[-1][metric] = 1.0
    objective = planned.sweep.objective.model_copy(update={"metric": metric})
    assert outcome(planned, ledger, objective=objective, constraints=())[1] == f"Best is the lowest {metric}, {says}"


def test_the_seed_spread_keeps_apart_what_was_chosen(planned, ledger):
    page = render(planned, ledger, ledger.trials["000"], None)
    assert "mean 1.5, standard deviation 0.25, from 1.25 to 1.75" in page
    assert "the mean of the others is 1.625" in page


def test_a_sweep_without_a_best_trial_says_so(planned, ledger):
    assert "No trial keeps the constraints" in basis(planned, ledger, [], None, None)[-1]


def test_pictures_are_pictures():
    trials = many(10, lambda settings: settings["model.lr"])
    drawn_pictures = [
        plots.parallel_coordinates(SWEEP, trials, trials[0]),
        plots.learning_curves(SWEEP, trials, trials[0]),
        plots.importance_bars(importance(SWEEP, trials)),
        plots.seed_spread(SWEEP, trials[:3]),
    ]
    for content in drawn_pictures:
        assert min(Image.open(io.BytesIO(content)).size) > 100
    assert plots.parallel_coordinates(SWEEP, [trial("0")], None) is None
    assert plots.learning_curves(SWEEP, [trial("0")], None) is None


def green(picture):
    """Rows and columns of what is drawn in the colour of the best, in shares of the picture."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - (0x2F, 0x6F, 0x5E)).sum(2) < 12)
    return rows / pixels.shape[0], columns / pixels.shape[1]


def test_the_line_in_green_is_that_of_the_trial_that_leads():
    """Not of one that was stopped with a better figure; none where no trial keeps the constraints."""
    leader, stopped = trial("000", 4.0), trial("001", 2.0, status="stopped", samples=32)
    for each in (leader, stopped):
        each.settings |= {"model.width": 16, "model.gamma": 0.5}
    rows, columns = green(plots.parallel_coordinates(SWEEP, [leader, stopped], leader))
    assert rows[columns == columns.max()].min() > 0.5  # its line ends below the other's
    assert not len(green(plots.parallel_coordinates(SWEEP, [leader, stopped], None))[0])


def test_a_line_of_the_log_says_how_a_trial_ended(planned, ledger):
    said = [line(planned, each) for each in ledger.trials.values()]
    assert said[0] == "trial 000 finished at 100%  fd_local 1.25  optimizer.lr=0.01"
    assert said[1].startswith("trial 001 finished at 100%  fd_local (4)")
    assert said[2].startswith("trial 002 stopped at 50%")
    assert said[3] == "trial 003 failed at 0%  no report  optimizer.lr=0.01: <b>DivergenceError</b>"


def test_settings_are_shown_short():
    assert shown_settings({"model.critic.lr": 0.00012345, "model.loss": "hinge", "seed": 3}) == (
        "critic.lr=0.0001234  loss=hinge  seed=3"
    )


def test_the_live_table_has_the_running_first_and_the_best_next(planned, ledger):
    ledger.trials["002"].status = "running"
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(planned, ledger))
    rows = [row.split() for row in console.export_text().splitlines() if row.strip()]
    assert "5 of 6 trials ended" in " ".join(rows[0])
    assert [row[0] for row in rows[2:]] == ["002", "000", "seed-0", "seed-1", "001", "003"]


def test_without_a_terminal_each_end_and_each_copy_is_one_line(planned, ledger):
    out = io.StringIO()
    with display(Console(file=out, width=200), planned, ledger) as show:
        for each in ledger.trials.values():
            show(each)
            show(each)
    assert out.getvalue().count("\n") == len(ledger.trials)


def test_on_a_terminal_the_table_is_drawn_again(planned, ledger):
    out = io.StringIO()
    with display(Console(file=out, width=100, force_terminal=True), planned, ledger) as show:
        show(ledger.trials["000"])
    assert out.getvalue().count("trials ended") >= 2
