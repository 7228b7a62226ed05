"""The page read back: every figure in its own row and column, the best marked, and no other file needed."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import pytest
from matplotlib.axes import Axes
from PIL import Image

from kinfolk_pipelines.meaning import MEANING
from kinfolk_pipelines.report import Entry, best, columns, meaning, number, quality_against_speed, render

PNG = b"\x89PNG of a grid"


def entry(recipe, seconds=12.5, grid=PNG, basis=None, **metrics):
    named = f"digits/{recipe}", f"family of {recipe}", f"digits-{recipe}/7"
    return Entry(*named, metrics, seconds, 64_000, grid, basis or {})


VAE = entry("vae", fd_local=3.0, recall=0.25, elbo_nats=-90.5, samples_per_second=10_000.0, parameters=1234.0)
EDM = entry("edm", None, fd_local=1.5, recall=0.75, nfe=35.0, samples_per_second=200.0, parameters=99.0)
GAN = entry("gan", 3.0, fd_local=1.75, recall=0.5, nfe=1.0, samples_per_second=50_000.0, parameters=500.0)
ALL = [VAE, EDM, GAN]


class Table(HTMLParser):
    """Rows of the page's table: head, then (text, whether marked best) of each cell."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.cell, self.texts = [], None, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(["", dict(attributes).get("class") == "best"])
            self.cell = self.rows[-1][-1]

    def handle_endtag(self, tag):
        self.cell = None if tag in ("td", "th") else self.cell

    def handle_data(self, data):
        self.texts.append(data)
        if self.cell is not None:
            self.cell[0] += data


def rows(entries):
    found = Table(render("Comparison", ["how it was measured"], entries)).rows
    return {row[0][0]: row[1:] for row in found}


def test_each_figure_stands_under_its_recipe_with_what_it_is():
    table = rows(ALL)
    texts = {name: [text for text, _ in row] for name, row in table.items()}
    assert texts["figure"][:3] == ["digits/vae", "digits/edm", "digits/gan"]
    assert texts["fd_local"] == ["3", "1.5", "1.75", meaning("fd_local")]
    assert texts["elbo_nats"] == ["-90.5", "", "", meaning("elbo_nats")]
    assert texts["nfe"] == ["", "35", "1", meaning("nfe")]
    assert texts["training samples"][:3] == ["64,000"] * 3
    assert texts["training seconds"][:3] == ["12.5", "", "3"]


def test_the_best_of_a_row_is_marked_and_no_other():
    marked = {name: [best for _, best in row][:3] for name, row in rows(ALL).items()}
    assert marked["fd_local"] == [False, True, False]
    assert marked["recall"] == [False, True, False]
    assert marked["nfe"] == [False, False, True]
    assert marked["samples_per_second"] == [False, False, True]
    for unmarked in ("elbo_nats", "parameters", "training samples", "training seconds", "figure"):
        assert not any(marked[unmarked]), unmarked


def test_equal_figures_are_best_together():
    twins = [entry("a", recall=0.5), entry("b", recall=0.5), entry("c", recall=0.1)]
    assert [best for _, best in rows(twins)["recall"]][:3] == [True, True, False]


@pytest.mark.parametrize("name", MEANING)
def test_best_is_what_the_glossary_calls_better(name):
    pair = [entry("a", **{name: 1.0}), entry("b", **{name: 2.0})]
    assert best(pair, name) == {"lower": 1, "higher": 2, None: None}[MEANING[name].better]
    assert best(pair[:1], name) is None


@pytest.mark.parametrize("metric", ["log_prob_nats", "elbo_bits_per_dim", "ode_log_prob_nats"])
def test_likelihoods_of_different_rows_or_classes_have_no_best_and_say_so(metric):
    rows_of_each = ["the first 300 test samples", "the first 300 test samples, given their classes"]
    pair = [entry(f"r{at}", basis={"likelihood": said}, **{metric: 1.0 + at}) for at, said in enumerate(rows_of_each)]
    assert best(pair, metric) is None
    assert [text for text, _ in rows(pair)["likelihood"]][:2] == rows_of_each
    assert best([pair[0], pair[0]], metric) == 1.0
    assert "likelihood" not in rows([entry("a", fd_local=1.0)])


def test_counts_of_modes_compare_by_one_rule_alone():
    pair = [entry(f"r{n}", basis={"mode_rule": f"{n} samples"}, kl_to_uniform=1.0 / n, modes=n) for n in (100, 1000)]
    alike = [entry(f"r{n}", basis={"mode_rule": "100 samples"}, kl_to_uniform=1.0 / n, modes=n) for n in (4, 8)]
    for name, value in (("kl_to_uniform", 0.125), ("modes", 8)):
        assert best(pair, name) is None
        assert best(alike, name) == value
    assert [text for text, _ in rows(pair)["mode rule"]][:2] == ["100 samples", "1000 samples"]


def test_a_tighter_bound_is_best_among_those_of_as_many_draws():
    pair = [entry(f"r{n}", basis={"importance_bound": f"{n} draws"}, importance_bound_nats=-n) for n in (5, 50)]
    assert best(pair, "importance_bound_nats") is None


def test_models_of_other_classes_compare_in_what_they_cost_alone():
    pair = [entry(f"r{at}", basis={"classes": str(at)}, fd_local=1.0 + at, nfe=1.0 + at) for at in (0, 8)]
    assert best(pair, "fd_local") is None
    assert best(pair, "nfe") == 1.0
    assert [text for text, _ in rows(pair)["classes"]][:2] == ["0", "8"]


def test_strangeness_compares_against_the_same_data_alone():
    pair = [entry(said, basis={"against": said}, auroc_against=share) for said, share in (("a", 0.9), ("b", 0.8))]
    assert best(pair, "auroc_against") is None
    assert best([pair[0], pair[0]], "auroc_against") == 0.9


def test_what_a_figure_is_says_which_way_is_better():
    assert meaning("fd_local") == f"{MEANING['fd_local'].text} Lower is better."
    assert meaning("recall") == f"{MEANING['recall'].text} Higher is better."
    assert meaning("parameters") == MEANING["parameters"].text


def test_errors_distances_and_costs_are_better_lower_and_shares_higher():
    lower = {name for name, each in MEANING.items() if each.better == "lower"}
    assert {"fd_local", "kd_local", "reconstruction_mse", "completion_mse", "nfe"} <= lower
    assert lower == {name for name in MEANING if name.endswith("_bits_per_dim")} | {
        "fd_local", "kd_local", "kl_to_uniform", "reconstruction_mse", "completion_mse", "nfe"
    }  # fmt: skip
    neither = {name for name, each in MEANING.items() if each.better is None}
    assert {name for name in MEANING if name.endswith("_density_nats")} | {"fd_local_test", "parameters"} <= neither


@pytest.mark.parametrize("first", [0, 1])
def test_a_figure_that_is_not_a_number_is_never_best(first):
    three = [entry("a", fd_local=2.0), entry("b", fd_local=1.0)]
    three.insert(first, entry("broken", fd_local=math.nan))
    assert best(three, "fd_local") == 1
    assert [text for text, _ in rows(three)["fd_local"]][first] == "NaN"


def test_rows_are_the_figures_there_are_in_the_order_of_the_glossary():
    found = columns([entry("a", vendi=3, fd_local=1, strange=2), entry("b", recall=1)])
    assert found == ["fd_local", "recall", "vendi"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (35.0, "35"),
        (0.123456, "0.1235"),
        (-90.51234, "-90.51"),
        (999.96, "1000"),
        (12345.6, "12,346"),
        (-12345.6, "-12,346"),
        (1.5e-7, "1.5e-07"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
    ],
)
def test_a_number_has_about_four_digits(value, shown):
    assert number(value) == shown


def test_the_plot_has_speed_to_the_right_and_distance_upwards(monkeypatch):
    points, floors = [], []
    monkeypatch.setattr(Axes, "scatter", lambda self, x, y, **style: points.append((x, y, style["color"])))
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **style: floors.append(y))
    twin = entry("edm2", fd_local=1.25, samples_per_second=100.0)
    kin = Entry("digits/vae2", VAE.family, "x/1", {"fd_local": 2.0, "samples_per_second": 1.0}, 1.0, 1)
    floored = entry("gan", fd_local=1.75, samples_per_second=50.0, fd_local_test=0.5)
    without = entry("flow", samples_per_second=3.0)
    png = quality_against_speed([floored, VAE, twin, kin, without])
    assert [(x, y) for x, y, _ in points] == [(50, 1.75), (10_000, 3), (100, 1.25), (1, 2)]
    colours = [colour for _, _, colour in points]
    assert colours[1] == colours[3]
    assert len(set(colours)) == 3
    assert floors == [0.5]
    assert Image.open(io.BytesIO(png)).format == "PNG"


def test_there_is_no_plot_without_both_figures():
    assert quality_against_speed([entry("a", fd_local=1.0), entry("b", samples_per_second=2.0)]) is None
    assert "Quality against speed" not in render("x", [], [entry("a", fd_local=1.0)])


def test_each_grid_has_its_own_caption():
    page = render("x", [], [entry("a", grid=b"first"), entry("b", grid=None), entry("c", grid=b"third")])
    figures = re.findall(r"<figure>.*?</figure>", page)
    assert [base64.b64decode(re.search(r"base64,([^\"]+)", each)[1]) for each in figures] == [b"first", b"third"]
    for name, each in zip("ac", figures, strict=True):
        assert f"digits/{name}" in each
        assert f"family of {name}, digits-{name}/7" in each
    assert "No model here draws pictures" in render("x", [], [entry("a", grid=None)])


def test_the_page_says_how_it_was_measured_and_needs_no_other_file():
    page = render("On digits", ["2000 samples <each>"], ALL)
    assert "On digits" in Table(page).texts
    assert "2000 samples <each>" in Table(page).texts
    assert set(re.findall(r"(?:src|href)=[\"']?([^\"'\s>]{5})", page)) == {"data:"}
    assert "url(" not in page


def test_text_of_users_is_no_markup():
    hostile = Entry("<script>a", "<b>f", "<i>r", {"recall": 1.0}, 1.0, 1, PNG)
    page = render("<u>t", ["<s>b"], [hostile])
    assert not re.findall(r"<(script|b|i|u|s)>", page)
