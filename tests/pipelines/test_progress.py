"""What a person sees: a few lines in a log, a bar on a terminal, and text as it is."""

import io

import pytest
from rich.console import Console

from kinfolk_pipelines.output import print_table
from kinfolk_pipelines.progress import counting, display, losses


def shown(reports, samples=1000, terminal=False):
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=terminal, color_system=None)
    with display(console, "digits-vae", samples) as bar:
        for report in reports:
            bar.show(report)
        if terminal:
            bar._bar.refresh()
    return text.getvalue()


def log(seen, **logs):
    return {"kind": "log", "samples_seen": seen, "logs": {"samples_per_second": 1234.4, **logs}}


START = {"kind": "start", "samples_seen": 0, "problems": []}


def test_a_log_holds_ten_lines_of_a_run():
    lines = shown([START, *(log(seen, **{"vae/loss": 0.5}) for seen in range(10, 1010, 10))]).splitlines()
    assert len(lines) == 10
    assert lines[0] == "digits-vae:  10%  1,234 samples/s  vae 0.5"
    assert lines[-1].startswith("digits-vae: 100%")


def test_a_training_that_goes_on_says_from_where_and_holds_its_share_of_lines():
    start = {"kind": "start", "samples_seen": 500, "problems": ["state.safetensors was altered"]}
    lines = shown([start, *(log(seen) for seen in range(510, 1010, 10))]).splitlines()
    assert "state.safetensors was altered" in lines[0]
    assert lines[1] == "digits-vae: going on from 500 samples"
    assert [line.split()[1] for line in lines[2:]] == ["60%", "70%", "80%", "90%", "100%"]


def test_a_roll_back_is_told():
    assert "not finite; back to 320 samples" in shown([{"kind": "rollback", "samples_seen": 320}])


def test_a_terminal_shows_how_far_it_is():
    text = shown([START, log(250, **{"critic/loss": 0.25, "critic/penalty": 9.0})], terminal=True)
    assert "25%" in text
    assert "1,234 samples/s" in text
    assert "critic 0.25" in text


def test_losses_are_named_by_their_phase():
    assert losses({"a/loss": 1.23456, "a/kl": 3.0, "b/loss": -2.0}) == "a 1.235  b -2"


def test_counting_is_a_bar_on_a_terminal_and_silent_elsewhere():
    for terminal in (True, False):
        text = io.StringIO()
        with counting(Console(file=text, force_terminal=terminal, width=80)) as count:
            count("pictures", 3, 12)
            count("pictures", 12, 12)
        assert ("pictures" in text.getvalue() and "100%" in text.getvalue()) == terminal


@pytest.mark.parametrize("cell", ["[bold] and [/bold]", "/data/[/old]/x", "[red]"])
def test_a_table_shows_text_as_it_is(cell, capsys):
    print_table(["[i]name"], [[cell]])
    assert cell in (shown := capsys.readouterr().out)
    assert "[i]name" in shown
