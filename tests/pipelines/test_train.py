"""What a training leaves in MLflow and the registry, however it ends; Ray is played by this process."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import kinfolk.training.launch
import kinfolk_pipelines.train as module
from kinfolk.bundle import load_bundle
from kinfolk.contract import SamplerOptions, Tasks
from kinfolk.errors import ConfigError, DivergenceError, RegistryError
from kinfolk.tracking import registry
from kinfolk.tracking.connection import connect
from kinfolk.tracking.courier import Delivery
from kinfolk.tracking.runs import Run
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.promotion import promote_version
from kinfolk_pipelines.train import InterruptedTrainingError, train


@pytest.fixture
def run(settings, ray, quiet):
    """Plan and train as ``kinfolk train ring/blob`` does."""

    def command(*sets, name=None, console=quiet, **more):
        return train(settings, plan(settings, "ring/blob", sets, name), console, **more)

    return command


def runs_of(settings):
    client = connect(settings.tracking)
    found = client.get_experiment_by_name(settings.experiment)
    return client.search_runs([found.experiment_id]) if found else []


def test_a_training_is_registered_with_what_it_takes_to_repeat_it(settings, ray, run):
    trained = run()
    planned = plan(settings, "ring/blob")
    lineage, metrics = trained.version.lineage, trained.metrics
    assert trained.version.reference == "ring-blob/1"
    assert (lineage.family, lineage.recipe, lineage.data) == ("gaussian", "ring/blob", "ring")
    assert lineage.data_digest == planned.data.digest
    assert lineage.recipe_digest == planned.recipe.digest()
    assert lineage.parents == {}
    assert metrics["samples_per_second"] == lineage.samples_per_second
    assert metrics["train_seconds"] > 0
    assert {"gaussian/loss", "gaussian/log_prob"} <= metrics.keys()
    loaded = load_model(settings, "ring-blob/1")
    assert loaded.recipe["evaluation"]["samples"] == 12
    assert loaded.recipe["evaluation"]["options"] == {"steps": 2, "temperature": 0.5}


def test_the_speed_of_a_version_is_that_of_sampling(run, monkeypatch):
    monkeypatch.setattr(module.time, "perf_counter", iter([k / 4 for k in range(1000)]).__next__)
    trained = run()
    assert trained.metrics["samples_per_second"] == 64 * 4


def test_a_model_that_draws_nothing_has_no_speed(run, monkeypatch):
    real = module._speed
    monkeypatch.setattr(module, "_speed", lambda model: real(SimpleNamespace(tasks=Tasks(options=SamplerOptions()))))
    trained = run()
    assert "samples_per_second" not in trained.metrics  # that of training is another thing
    assert trained.version.lineage.samples_per_second is None


def test_the_run_holds_settings_data_history_and_pictures(settings, run):
    version = run(workers=2).version
    (stored,) = runs_of(settings)
    assert stored.info.run_id == version.run_id
    assert stored.info.status == "FINISHED"
    assert stored.data.params["training.batch_size"] == "32"
    assert stored.data.params["model.dequantise"] == "0.05"  # the family's default is written out
    tags = {key: stored.data.tags[key] for key in ("family", "recipe", "data", "data_digest")}
    assert tags == {"family": "gaussian", "recipe": "blob", "data": "ring", "data_digest": version.lineage.data_digest}
    (given,) = stored.inputs.dataset_inputs
    assert given.dataset.name == "ring"
    points = connect(settings.tracking).get_metric_history(version.run_id, "gaussian/loss")
    assert {point.step for point in points if point.step} == {32, 64}
    pictures = sorted(path.name for path in (Path(stored.info.artifact_uri) / "samples").iterdir())
    assert pictures == ["000000000032.png", "000000000064.png"]
    assert (Path(stored.info.artifact_uri) / "samples" / pictures[0]).read_bytes() == b"picture"


def test_what_was_trained_is_not_trained_again_unless_asked(settings, ray, run):
    first, again = run(), run()
    assert again.reused
    assert again.seconds is None
    assert again.version == registry.find(settings.tracking, first.version.reference)
    assert len(ray.asked) == 1
    fresh = run(fresh=True)
    assert not fresh.reused
    assert fresh.version.reference == "ring-blob/2"
    assert ray.asked[1]["name"] != ray.asked[0]["name"]


def test_another_setting_or_name_is_another_training(ray, run):
    references = [run().version.reference, run("seed=1").version.reference, run(name="other").version.reference]
    assert references == ["ring-blob/1", "ring-blob/2", "other/1"]
    assert len({each["name"] for each in ray.asked}) == 3


def test_a_stopped_training_goes_on_in_its_own_run(settings, ray, run):
    ray.stop_after = 32
    with pytest.raises(InterruptedTrainingError, match=r"after 32 of 64 samples.*The same command goes on"):
        run()
    (killed,) = runs_of(settings)
    assert killed.info.status == "KILLED"
    assert not registry.models(settings.tracking)
    with pytest.raises(InterruptedTrainingError, match="starts another"):
        run(fresh=True)
    ray.stop_after = None
    assert run().version.run_id == killed.info.run_id
    assert ray.asked[0]["name"] == ray.asked[2]["name"]
    assert connect(settings.tracking).get_run(killed.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("says_from", "counted"), [(32, 10), (0, 0)])  # its checkpoint may be gone
def test_the_time_of_a_stopped_training_counts(settings, ray, run, monkeypatch, says_from, counted):
    looks = iter(range(0, 10**6, 10))  # 10 s from one to the next, the first at the start
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(looks)))
    monkeypatch.setattr(module, "_speed", lambda model: {})
    ray.stop_after = 64
    with pytest.raises(InterruptedTrainingError):
        run()
    (killed,) = runs_of(settings)
    assert killed.data.metrics["train_seconds_so_far"] == 10  # at its one checkpoint
    ray.stop_after, ray.says_from = None, says_from
    trained = run()
    assert runs_of(settings)[0].data.metrics["train_seconds_so_far"] == counted + 20
    assert trained.metrics["train_seconds"] == counted + 30


def test_a_failed_training_registers_nothing_and_may_be_tried_again(settings, ray, run):
    ray.fails = DivergenceError("diverged")
    with pytest.raises(DivergenceError, match="diverged"):
        run()
    (failed,) = runs_of(settings)
    assert failed.info.status == "FAILED"
    assert not registry.models(settings.tracking)
    ray.fails = None
    assert run().version.run_id == failed.info.run_id
    connect(settings.tracking).update_run(failed.info.run_id, "FAILED")
    assert not run().reused


@pytest.mark.parametrize(
    ("fresh", "remedy"), [(False, "The same command registers it"), (True, "stays in .*/bundles/ring-blob-")]
)
def test_a_model_that_cannot_be_registered_is_not_lost(settings, run, monkeypatch, fresh, remedy):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "register", lambda *_: (_ for _ in ()).throw(RegistryError("The disk is full.")))
        with pytest.raises(RegistryError, match=f"training is complete.*disk is full.*{remedy}"):
            run(fresh=fresh)
    assert runs_of(settings)[0].info.status == "FAILED"
    assert run().version.number == 1


def test_workers_share_the_cpus_of_the_machine(settings, ray, run):
    run(workers=2, use_gpu=True)
    run("training.batch_size=16", workers=16)
    first, second = ray.asked
    assert (first["job"].threads, second["job"].threads) == (4, 1)
    assert (first["workers"], first["use_gpu"], first["storage"]) == (2, True, settings.checkpoints)
    assert first["job"].data == settings.dataset("ring")


def test_more_workers_than_the_cluster_has_start_no_run(settings, run, monkeypatch):
    def refuse(workers, use_gpu):
        raise ConfigError(f"{workers} {use_gpu}")

    monkeypatch.setattr(kinfolk.training.launch, "check_workers", refuse)
    with pytest.raises(ConfigError, match="4 True"):
        run(workers=4, use_gpu=True)
    with pytest.raises(ConfigError, match="does not divide over 3 workers"):
        run(workers=3)
    assert not runs_of(settings)


def test_fine_tuning_starts_from_the_weights_it_names(settings, ray, run):
    parent = run()
    weights = load_model(settings, "ring-blob").model.module.state_dict()
    tuned = run("init_from=ring-blob", name="tuned")
    assert tuned.version.lineage.parents == {"init_from": "ring-blob/1"}
    given = ray.asked[1]["job"].initial
    assert given.keys() == weights.keys()
    assert all(torch.equal(given[name], weights[name]) for name in weights)
    run(fresh=True)
    later = plan(settings, "ring/blob", ["init_from=ring-blob"], "tuned")
    assert later.run_name != ray.asked[1]["name"]  # the name now means another version
    assert parent.version.number == 1


def test_weights_of_another_network_are_refused(settings, run, tmp_path):
    run(name="vectors")
    recipe = tmp_path / "recipes" / "ring" / "blob.yaml"
    recipe.write_text(recipe.read_text().replace("ring", "digits"))
    with pytest.raises(ConfigError, match=r"does not fit .* log_std is \(2,\) there and \(1, 8, 8\) here"):
        plan(settings, "ring/blob", ["init_from=vectors"])


def test_what_mlflow_did_not_take_is_told_with_the_remedy(run, monkeypatch):
    monkeypatch.setattr(Run, "finish", lambda self, status: Delivery(self.run_id, 3, (), "timed out"))
    text = io.StringIO()
    run(console=Console(file=text, width=300))
    assert "3 entries could not be sent" in text.getvalue()
    assert "timed out" in text.getvalue()
    assert "kinfolk deliver" in text.getvalue()


def test_the_bundle_kept_is_the_model_registered(settings, ray, run):
    run()
    kept = load_bundle(settings.state / "bundles" / ray.asked[0]["name"]).module.state_dict()
    registered = load_model(settings, "ring-blob").model.module.state_dict()
    assert all(torch.equal(kept[name], registered[name]) for name in registered)


def test_what_a_monitor_warned_of_is_with_the_run_and_keeps_its_version_from_promotion(settings, ray, run):
    ray.alarm = "Samples are alike."
    version = run().version
    assert registry.find(settings.tracking, version.reference).alarms == ("Samples are alike.",)
    (stored,) = runs_of(settings)
    noted = Path(stored.info.artifact_uri) / "alarms"
    assert json.loads((noted / "000000000064.json").read_text()) == {"alarm": {"reason": "Samples are alike."}}
    assert (noted / "000000000064.npy").read_bytes() == b"npy"
    assert (noted / "000000000064.png").read_bytes() == b"png"
    told = promote_version(settings, version.name, "latest")
    assert not told.decision.promote
    assert "Samples are alike." in told.decision.reason


MONITORED = "monitor={act: change, alarm: {grace_samples: 0, looks: 2}, changes: [%s]}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{put: {model.shrnk: 1}}", "shrnk is not a key. Did you mean 'shrink'"),
        ("{put: {model.shrink: high}}", "after 1 alarms, model: shrink: .* number"),
        ("{put: {data: grid}}", "data cannot change during a training"),
        ("{new_seed: true}, {multiply: {training.samples: 0.5}}", "samples=32 may have been seen .* at least the 64"),
        ("{multiply: {model.shrink: 2}}, {put: {training.batch_size: 0}}", "batch_size: .* greater than 0"),
        ("{put: {training.batch_size: 31}}", "batch_size=31 does not divide over 2 workers with accumulate=1"),
        ("{new_seed: true}, {put: {training.accumulate: 5}}", "batch_size=32 does not divide over 2 .* accumulate=5"),
    ],
)
def test_a_change_that_cannot_be_is_refused_before_training(settings, ray, run, change, said):
    with pytest.raises(ConfigError, match=said):
        run(MONITORED % change, workers=2)
    assert not ray.asked
    assert not runs_of(settings)


@pytest.mark.parametrize("target", [None, 0.6])
def test_a_change_of_what_training_itself_moves_is_refused(settings, target):
    change = "{put: {model.augmentation.probability: 0.75, model.packing: 2}}"
    augmented = {"transforms": ["cutout"], "target": target, "probability": 0.25}
    sets = [MONITORED % change, "monitor.every_samples=1000", f"model.augmentation={json.dumps(augmented)}"]
    sets += ["model.conditional=false", "model.spectral=[critic]"]
    given = settings.model_copy(update={"recipes": None})
    if target is None:
        assert plan(given, "digits/dcgan", sets, watched=False).groups == [1, 2]
        return
    with pytest.raises(ConfigError, match=r"augmentation.probability starts at 0.25 or at 0.75, and training goes on"):
        plan(given, "digits/dcgan", sets, watched=False)


def test_a_change_may_start_at_other_weights_and_what_follows_from_them(settings):
    """The singular vector of a layer with one output is 1 or -1, and from two seeds may be the same by chance."""
    change = "{put: {model.packing: 3}}"
    sets = [MONITORED % change, "monitor.every_samples=1000", "model.conditional=false", "model.spectral=[critic]"]
    given = settings.model_copy(update={"recipes": None})
    assert plan(given, "digits/dcgan", sets, watched=False).groups == [1, 3]


def test_a_limit_on_modes_needs_data_whose_modes_are_known(settings):
    limit = ["monitor={alarm: {grace_samples: 0, looks: 2, limits: {modes: {least: 0.9}}}}"]
    assert plan(settings, "ring/blob", limit, watched=False).recipe.monitor
    shipped = settings.model_copy(update={"recipes": None})
    with pytest.raises(ConfigError, match=r"limits.modes: nothing is known of the modes of digits"):
        plan(shipped, "digits/dcgan", limit, watched=False)
