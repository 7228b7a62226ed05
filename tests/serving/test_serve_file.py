from pathlib import Path

import pytest

from kinfolk.errors import ConfigError
from kinfolk.serving.config import load_serve_file

GOOD = "port: 9000\nmodels:\n  - name: digits-vae\n    limits: {max_n: 7}\n"


def load(tmp_path, text):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return load_serve_file(path)


def test_a_serve_file_is_read_with_defaults(tmp_path):
    file = load(tmp_path, GOOD)
    (model,) = file.models
    assert (file.host, file.port) == ("127.0.0.1", 9000)
    assert (model.alias, model.path, model.limits.max_n) == ("champion", "/v1/models/digits-vae", 7)
    assert model.batch_limits.max_evaluations == model.limits.max_evaluations
    assert model.batch_limits.sizes == ()


def test_a_batcher_has_the_row_sizes_of_the_serve_file(tmp_path):
    (model,) = load(tmp_path, "models: [{name: a, max_rows: 8, row_sizes: [1, 4, 8]}]").models
    assert (model.batch_limits.max_rows, model.batch_limits.sizes) == (8, (1, 4, 8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: []", "at least 1"),
        ("models: [{name: a}, {name: a}]", "two models have the address /v1/models/a"),
        ("models: [{name: a, route: b}, {name: b}]", "two models have the address /v1/models/b"),
        ("models: [{nam: a}]", "Did you mean 'name'"),
        ("models: [{name: ../etc}]", "pattern"),
        ("models: [{name: a, route: 'b/../c'}]", "pattern"),
        ("models: [{name: a, limits: {max_evaluations: 10, max_evaluations_queued: 5}}]", "max_evaluations=10"),
        ("models: [{name: a, autoscaling: {min_replicas: 3, max_replicas: 2}}]", "min_replicas=3"),
        ("models: [{name: a, shared: true}]", "a is shared, and there is no section 'shared': add one with memory_mb"),
        ("shared: {memory_mb: 9}\nmodels: [{name: a}]", "it is for models with shared: true"),
        ("shared: {memory_mb: 0}\nmodels: [{name: a, shared: true}]", "memory_mb"),
        ("shared: {}\nmodels: [{name: a, shared: true}]", "memory_mb"),
        ("port: 70000\nmodels: [{name: a}]", "port"),
        ("cors_origins: ['https://*.example.org']\nmodels: [{name: a}]", "cors_origins"),
        ("cors_origins: ['https://example.org/']\nmodels: [{name: a}]", "cors_origins"),
        ("cors_origins: [example.org]\nmodels: [{name: a}]", "cors_origins"),
        (
            "models: [{name: a, max_rows: 8, row_sizes: [1, 4]}]",
            r"row_sizes=\[1, 4\] .* end with max_rows=8",
        ),
        ("models: [{name: a, max_rows: 8, row_sizes: [4, 1, 8]}]", "must rise"),
        ("models: [{name: a, max_rows: 8, row_sizes: [0, 8]}]", "row_sizes"),
        ("- a", "mapping"),
        ("models: [", "YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "setting",
    [
        "num_cpus: 2",
        "num_gpus: 1",
        "threads: 2",
        "max_ongoing_requests: 9",
        "drain_timeout_s: 9",
        "autoscaling: {max_replicas: 2}",
    ],
)
def test_what_belongs_to_a_replica_is_refused_at_a_model_that_shares_one(tmp_path, setting):
    text = f"shared: {{memory_mb: 9}}\nmodels: [{{name: a, shared: true, {setting}}}]"
    with pytest.raises(ConfigError, match=f"{setting[:7]}.* would have no effect: it is for a model with a replica of"):
        load(tmp_path, text)
    load(tmp_path, text.replace("shared: true, ", "").replace("models: [", "models: [{name: b, shared: true}, "))


def test_a_shared_model_has_what_its_replica_has_and_limits_of_its_own(tmp_path):
    file = load(
        tmp_path,
        "shared: {memory_mb: 9, num_gpus: 0.5, drain_timeout_s: 7, threads: 3}\n"
        "models: [{name: a, shared: true, max_rows: 5}, {name: b}]",
    )
    assert [model.name for model in file.own] == ["b"]
    (model,) = file.sharing
    settled = file.shared.settled(model)
    assert (settled.device, settled.drain_timeout_s, settled.threads, settled.max_rows) == ("cuda", 7, 3, 5)
    assert settled.path == "/v1/models/a"


def test_the_serve_file_that_ships_is_valid_and_closed_to_the_network():
    file = load_serve_file(Path(__file__).parents[2] / "infra" / "serve.yaml")
    assert file.host == "127.0.0.1"
    assert file.models


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_serve_file(tmp_path / "none.yaml")


def test_no_other_site_may_read_answers_unless_it_is_named(tmp_path):
    assert load(tmp_path, GOOD).cors_origins == ()
    named = ("https://example.org", "http://localhost:3000", "http://[::1]:80", "*")
    assert load(tmp_path, f"cors_origins: {list(named)}\n{GOOD}").cors_origins == named


@pytest.mark.parametrize(
    ("keys", "threads"),
    [
        ("", 1),
        (", num_cpus: 0.25", 1),
        (", num_cpus: 0", 1),
        (", num_cpus: 3.9", 3),
        (", num_cpus: 4, threads: 1", 1),
        (", threads: 2", 2),
    ],
)
def test_a_network_call_takes_the_cpus_that_are_reserved_unless_told_otherwise(tmp_path, keys, threads):
    (model,) = load(tmp_path, f"models: [{{name: a{keys}}}]").models
    assert model.cpu_threads == threads
