"""One worker without Ray Train: which checkpoint it goes on from, what it stores, and what it tells whom."""

import base64
import io
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed
from PIL import Image
from ray.train import Checkpoint

from kinfolk import sampling
from kinfolk.bundle import load_bundle, save_bundle
from kinfolk.checkpoint import load_checkpoint, save_checkpoint
from kinfolk.config import Recipe, load_recipe
from kinfolk.errors import ConfigError, DataError, IntegrityError
from kinfolk.step import World
from kinfolk.training import worker as module
from kinfolk.training.lookout import kept_checkpoints
from kinfolk.training.loop import Report
from kinfolk.training.stored import fetched
from kinfolk.training.worker import Job, Reporter, _go_on, _stored, _world, fresh_state, run_worker, trained_model
from kinfolk_pipelines.families import untrained


@pytest.fixture
def job(toy, digits):
    training = {"samples": 64, "batch_size": 32, "ema_halflife_samples": 20, "preview_rows": 4}
    return Job(Recipe(name="t", family="gaussian", data="digits", training=training), digits.path)


@pytest.fixture
def train(monkeypatch):
    """Stands in for ray.train: checkpoints reported are kept as Ray keeps them."""
    kept = SimpleNamespace(reported=[], newest=None, older=[], rank=0, size=1)
    kept.report = lambda metrics, checkpoint=None: kept.reported.append((metrics, checkpoint and load(checkpoint)))
    kept.get_checkpoint = lambda: kept.newest
    kept.get_all_reported_checkpoints = lambda: [SimpleNamespace(checkpoint=each) for each in kept.older]
    kept.get_context = lambda: SimpleNamespace(get_world_rank=lambda: kept.rank, get_world_size=lambda: kept.size)
    kept.Checkpoint = SimpleNamespace(from_directory=Path)
    monkeypatch.setattr(module.ray, "train", kept)
    monkeypatch.setattr(module.ray, "get", lambda answer: answer)
    monkeypatch.setattr(module, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "broadcast_from_rank_zero", lambda given: given)
    return kept


def load(folder):
    return load_checkpoint(folder).values["samples_seen"]


class Letters:
    """A mailbox whose ``put.remote`` answers at once."""

    def __init__(self, stop=False):
        self.got, self.stop = [], stop
        self.put = SimpleNamespace(remote=self._put)

    def _put(self, report):
        self.got.append(report)
        return self.stop


def reporter(job, digits, world=None, stop=False):
    state = fresh_state(job, digits.spec)
    state.samples_seen = 32
    return Reporter(job, state, world or World(), Letters(stop))


def checkpoint(folder):
    return Checkpoint.from_directory(str(folder))


def test_stored_checkpoints_are_tried_from_the_newest_back_each_once(train):
    assert _stored() == []
    one, two, three = (SimpleNamespace(path=name) for name in ("one", "two", "three"))
    train.newest, train.older = three, [one, two, three]
    assert _stored() == [three, two, one]


@pytest.fixture
def stored(train, job, digits, tmp_path):
    """Two checkpoints, after 32 and after 48 samples."""
    for seen in (32, 48):
        state = fresh_state(job, digits.spec)
        state.samples_seen = seen
        save_checkpoint(tmp_path / str(seen), state.snapshot())
        train.older.append(checkpoint(tmp_path / str(seen)))
    train.newest = train.older[-1]
    return tmp_path


def gone_on(job, digits, rank=0, size=1):
    state = fresh_state(job, digits.spec)
    problems = _go_on(state, job, World(rank, size, lambda value: value))
    return state.samples_seen, problems


def test_a_checkpoint_is_fetched_only_when_it_is_asked_for(stored, job, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "each_fetched", lambda all_: (seen.append(each) or Path(each.path) for each in all_))
    assert gone_on(job, digits) == (48, [])
    assert [each.path for each in seen] == [str(stored / "48")]


def test_all_workers_go_on_from_the_checkpoint_that_worker_0_found_good(stored, job, digits, monkeypatch):
    said = []
    monkeypatch.setattr(module, "broadcast_from_rank_zero", lambda given: said.append(given) or given)
    assert gone_on(job, digits, size=2) == (48, [])
    whole = (stored / "48" / "state.safetensors").read_bytes()
    (stored / "48" / "state.safetensors").write_bytes(whole[:-1])
    assert gone_on(job, digits, size=2)[0] == 32
    (stored / "48" / "state.safetensors").write_bytes(whole)  # a worker that could read it does not
    monkeypatch.setattr(module, "broadcast_from_rank_zero", lambda given: said[-1])
    assert gone_on(job, digits, rank=1, size=2) == (32, [])
    assert said == [0, 1]


def test_a_worker_that_cannot_read_what_worker_0_chose_says_so_and_chooses_nothing_else(
    stored, job, digits, monkeypatch
):
    monkeypatch.setattr(module, "broadcast_from_rank_zero", lambda given: 0)
    (stored / "48" / "state.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"state\.json"):
        gone_on(job, digits, rank=1, size=2)


def test_nobody_goes_on_where_worker_0_found_nothing(stored, job, digits, monkeypatch):
    monkeypatch.setattr(module, "broadcast_from_rank_zero", lambda given: None)
    assert gone_on(job, digits, rank=1, size=2) == (0, [])


def test_each_who_fetches_a_checkpoint_has_a_copy_of_his_own(stored, train):
    with fetched(train.newest) as one, fetched(train.newest) as other:
        assert len({one, other, stored / "48"}) == 3
        assert load(one) == load(other) == 48
    assert not one.exists()
    assert (stored / "48").is_dir()


def test_worker_0_stores_and_tells_and_the_others_only_keep_step(train, job, digits):
    first, second = reporter(job, digits), reporter(job, digits, World(1, 2, lambda value: value))
    for each in (first, second):
        each.handle(Report("checkpoint", 32, snapshot=each.state.snapshot()))
        each.handle(Report("log", 32, {"loss": 1.0}))
    assert train.reported == [({"samples_seen": 32}, 32), ({"samples_seen": 32}, None)]
    assert [(each["kind"], each["samples_seen"]) for each in first.mailbox.got] == [("checkpoint", 32), ("log", 32)]
    assert first.mailbox.got[1]["logs"] == {"loss": 1.0}
    assert not second.mailbox.got


def test_a_preview_is_a_picture_of_the_averaged_model_by_worker_0(train, job, digits):
    first, second = reporter(job, digits), reporter(job, digits, World(1, 2, lambda value: value))
    for value in first.state.ema.average.values():
        value.fill_(-20.0)  # the mean far below black, no deviation
    for each in (first, second):
        each.handle(Report("preview", 32))
        each.state.samples_seen = 64  # training goes on
        each.wait()
    (told,) = first.mailbox.got
    assert (told["kind"], told["samples_seen"]) == ("preview", 32)
    picture = Image.open(io.BytesIO(base64.b64decode(told["picture"])))
    assert picture.size == ((2 * 8 + 2) * 4, (2 * 8 + 2) * 4)
    assert picture.getpixel((0, 0)) == 0
    assert not second.mailbox.got


def test_a_preview_has_arrived_when_it_is_done(train, job, digits, monkeypatch):
    arrived = []
    monkeypatch.setattr(module.ray, "get", arrived.append)
    told = reporter(job, digits, stop="answer")
    told.handle(Report("preview", 32))
    told.wait()
    assert arrived == ["answer"]


def test_a_preview_leaves_the_cast_weights_of_a_step_alone(train, job, digits, monkeypatch):
    def cast_of(product):
        found = product.grad_fn
        while found.name() != "ToCopyBackward0":
            found = found.next_functions[-1][0]
        return found

    def autocast(*given, **options):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return b""

    monkeypatch.setattr(module, "draw", autocast)
    told, weight = reporter(job, digits), torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = torch.mm(torch.ones(2, 2), weight)
        told.handle(Report("preview", 32))
        told.wait()
        second = torch.mm(torch.ones(2, 2), weight)
    assert cast_of(first) is cast_of(second)


def test_training_goes_on_while_a_preview_is_drawn_and_waits_for_it_in_the_end(train, job, monkeypatch):
    drawn, finished = [], threading.Event()

    def slow(*given, **options):
        assert finished.wait(10)
        drawn.append(given)
        return b""

    def stored(metrics, checkpoint=None):
        if metrics["samples_seen"] == 64:
            assert not drawn
            finished.set()

    monkeypatch.setattr(module, "draw", slow)
    train.report = stored
    training = job.recipe.training.model_copy(update={"preview_every_samples": 64})
    ended, told = work(replace(job, recipe=job.recipe.model_copy(update={"training": training})))
    assert ended["samples_seen"] == 64
    assert len(drawn) == 1
    assert "preview" in [each["kind"] for each in told]


@pytest.mark.parametrize("bad", [0, 1])
def test_what_goes_wrong_with_any_preview_ends_the_training(train, job, monkeypatch, bad):
    drawn = []

    def fail(*given, **options):
        drawn.append(b"picture")
        if len(drawn) == bad + 1:
            raise ConfigError("no picture")
        return drawn[-1]

    monkeypatch.setattr(module, "draw", fail)
    assert work(job)[0].get("message") == "no picture"


@pytest.mark.parametrize(("stop", "elsewhere", "wanted"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_all_workers_agree_on_a_stop(train, job, digits, stop, elsewhere, wanted):
    told = reporter(job, digits, World(0, 2, lambda value: value + elsewhere), stop=bool(stop))
    told.tell("log", logs={})
    assert told.stop_wanted() is wanted


def test_nobody_stops_before_anything_was_told(train, job, digits):
    assert reporter(job, digits, stop=True).stop_wanted() is False


def test_ranks_are_those_of_ray_and_their_values_are_summed(train, monkeypatch):
    assert (_world().rank, _world().size) == (0, 1)
    train.rank, train.size = 2, 3
    summed = []
    monkeypatch.setattr(torch.distributed, "all_reduce", summed.append)
    world = _world()
    assert (world.rank, world.size) == (2, 3)
    value = torch.ones(2)
    assert world.all_reduce(value) is value
    assert summed == [value]


ENDED = {"samples_seen": 64, "interrupted": False, "alarm": None, "alarms": []}


def work(job, **more):
    letters = Letters(**more)
    return run_worker({"job": job, "mailbox": letters}), letters.got


def test_a_run_ends_with_a_checkpoint_of_its_last_sample(train, job, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    ended, told = work(replace(job, threads=3))
    assert ended == ENDED
    assert told[0]["kind"] == "start"
    assert told[0]["samples_seen"] == 0
    assert train.reported[-1] == ({"samples_seen": 64}, 64)
    assert threads == [3]


def test_a_worker_keeps_its_memory(train, job, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: asked.append(True))
    work(job)
    assert asked == [True]


def test_a_failed_training_leaves_no_preview_behind(train, job, monkeypatch):
    def stored(metrics, checkpoint=None):
        raise ConfigError("no space")

    def slow(*given, **options):
        time.sleep(0.2)
        return b""

    monkeypatch.setattr(module, "draw", slow)
    train.report = stored
    ended, told = work(job)
    assert ended["message"] == "no space"
    assert "preview" in [each["kind"] for each in told]


def test_a_stop_is_a_checkpoint_of_the_sample_it_stopped_at(train, job):
    ended, _ = work(job, stop=True)
    assert ended == {**ENDED, "samples_seen": 32, "interrupted": True}
    assert train.reported[-1] == ({"samples_seen": 32}, 32)


def test_a_stop_after_the_last_sample_is_no_interruption(train, job):
    training = job.recipe.training.model_copy(update={"samples": 32})
    short = job.recipe.model_copy(update={"training": training})
    assert work(Job(short, job.data), stop=True)[0] == {**ENDED, "samples_seen": 32}


def test_a_user_s_mistake_is_returned_and_not_raised(train, job, tmp_path):
    ended, told = work(Job(job.recipe, tmp_path))
    assert ended["error"] == DataError.__name__
    assert "dataset.json is missing" in ended["message"]
    assert not told


def test_what_one_of_two_workers_may_meet_alone_is_raised_so_that_the_other_ends_too(train, job, tmp_path):
    train.size = 2
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        work(Job(job.recipe, tmp_path))
    recipe = job.recipe.model_copy(update={"training": job.recipe.training.model_copy(update={"batch_size": 31})})
    assert work(Job(recipe, job.data))[0]["error"] == ConfigError.__name__  # of all workers alike


def test_a_damaged_checkpoint_is_passed_over_and_told(train, job, digits, tmp_path):
    for name, seen in (("old", 32), ("new", 64)):
        state = fresh_state(job, digits.spec)
        state.samples_seen = seen
        save_checkpoint(tmp_path / name, state.snapshot())
    weights = tmp_path / "new" / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    train.newest, train.older = checkpoint(tmp_path / "new"), [checkpoint(tmp_path / "old")]
    ended, told = work(job)
    assert told[0]["samples_seen"] == 32
    assert "state.safetensors" in told[0]["problems"][0]
    assert ended["samples_seen"] == 64


def test_a_composition_of_given_weights_goes_through_one_step_and_is_what_the_recipe_says(train, digits, tmp_path):
    """Nothing trains and nothing is averaged; what is stored is served like any model."""
    path = Path(__file__).parents[2] / "pipelines/recipes/digits/energy-composed.yaml"
    few = ["training.samples=64", "training.preview_rows=2", "training.ema_halflife_samples=9", "model.sampler.steps=3"]
    given = ["model.system.learn_weights=false", "model.system.buffer={}", "model.system.weights.second=2"]
    recipe = load_recipe(path, [*given, *few])
    job = Job(recipe, digits.path, parents=untrained(path, digits.spec).parents)
    train.report = lambda metrics, checkpoint: shutil.copytree(checkpoint, tmp_path / "stored")
    ended, told = work(job)
    assert ended == ENDED
    assert {"log", "preview", "checkpoint"} <= {each["kind"] for each in told}
    save_bundle(trained_model(job, tmp_path / "stored"), tmp_path / "bundle")
    served, begun = load_bundle(tmp_path / "bundle"), fresh_state(job, digits.spec).model
    assert begun.module.weight.tolist() == [0.5, 2.0]
    assert torch.equal(served.module.weight, begun.module.weight)
    assert torch.equal(sampling.sample(served, 3, 1), sampling.sample(begun, 3, 1))


def test_weights_to_start_from_are_those_of_the_first_step(job, digits):
    untrained = fresh_state(job, digits.spec).model.module.state_dict()
    initial = {name: torch.full_like(value, 0.25) for name, value in untrained.items()}
    state = fresh_state(Job(job.recipe, job.data, initial=initial), digits.spec)
    assert all(bool((value == 0.25).all()) for value in state.model.module.state_dict().values())
    assert all(bool((value == 0.25).all()) for value in state.ema.average.values())


WATCHED = {
    "every_samples": 32,
    "samples": 100,
    "alarm": {
        "grace_samples": 0,
        "looks": 2,
        "limits": {"missing": None, "effective_bins": None, "support_share": None},
    },
}


@pytest.fixture
def collapsing(job):
    """A recipe whose samples become alike within a few steps."""
    model = {"shrink": 1000.0, "optimizer": {"lr": 0.4}}
    training = {"samples": 640, "batch_size": 32, "checkpoint_every_samples": 32}

    def watched(act, **more):
        values = {**job.recipe.model_dump(), "model": model, "training": training, "monitor": {**WATCHED, "act": act}}
        values["monitor"] |= more
        return replace(job, recipe=Recipe.model_validate(values))

    return watched


def test_an_alarm_that_stops_is_stored_and_told_with_all_it_takes_to_see_why(train, collapsing):
    ended, told = work(collapsing("stop"))
    alarm = next(each for each in told if each["kind"] == "alarm")
    assert ended["samples_seen"] == alarm["samples_seen"] < 640
    assert ended["alarm"] == {"reason": alarm["reason"], "began": ended["samples_seen"] - 32}
    assert "mean distance of two samples" in alarm["reason"]
    assert train.reported[-1] == ({"samples_seen": ended["samples_seen"]}, ended["samples_seen"])
    assert alarm["noted"]["recipe"]["model"]["shrink"] == 1000.0
    assert [look["samples_seen"] for look in alarm["noted"]["looks"]] == list(range(32, ended["samples_seen"] + 1, 32))
    assert "gaussian/loss" in alarm["noted"]["looks"][0]["logs"]
    assert np.load(io.BytesIO(base64.b64decode(alarm["samples"]))).shape == (64, 1, 8, 8)
    assert Image.open(io.BytesIO(base64.b64decode(alarm["picture"]))).size[0] > 8 * 8 * 4
    measured = [each["logs"]["monitor/distance_ratio"] for each in told if each["kind"] == "look"]
    assert measured[-1] < 0.5 < measured[0]


def test_an_alarm_that_warns_lets_training_go_on_and_is_remembered(train, collapsing):
    ended, told = work(collapsing("warn"))
    assert ended["samples_seen"] == 640
    assert ended["alarm"] is None
    assert ended["alarms"] == [each["reason"] for each in told if each["kind"] == "alarm"]
    assert ended["alarms"]


def test_an_attempt_that_an_alarm_ended_ends_again_by_it_and_trains_no_more(train, collapsing, tmp_path):
    def keep_newest(metrics, checkpoint=None):
        shutil.rmtree(tmp_path / "newest", ignore_errors=True)
        shutil.copytree(checkpoint, tmp_path / "newest")

    train.report = keep_newest
    ended, told = work(collapsing("stop"))
    train.newest = checkpoint(tmp_path / "newest")
    again, heard = work(collapsing("stop"))
    assert again == ended
    assert [each["kind"] for each in heard] == ["start", "alarm"]
    assert heard[1] == next(each for each in told if each["kind"] == "alarm")


def test_an_attempt_goes_on_from_what_was_before_unless_it_has_a_checkpoint_of_its_own(train, job, digits, tmp_path):
    before, own = fresh_state(job, digits.spec), fresh_state(job, digits.spec)
    before.samples_seen, own.samples_seen = 32, 64
    save_checkpoint(tmp_path / "own", own.snapshot())
    attempt = replace(job, start=before.snapshot())
    assert work(attempt)[1][0]["samples_seen"] == 32
    train.newest = checkpoint(tmp_path / "own")
    assert work(attempt)[1][0]["samples_seen"] == 64


@pytest.mark.parametrize("elsewhere", [0, 1])
def test_all_workers_hear_of_an_alarm(train, collapsing, digits, elsewhere):
    told = reporter(collapsing("stop"), digits, World(1, 2, lambda value: value + elsewhere))
    assert told.alarmed(None, Report("look", 32)) is bool(elsewhere)


def test_a_run_that_may_go_back_keeps_what_it_may_go_back_to(collapsing):
    change = collapsing("change", changes=[{"new_seed": True}]).recipe
    assert kept_checkpoints(change) == 2 + 2
    assert kept_checkpoints(collapsing("stop").recipe) == 2
    rare = change.model_copy(update={"monitor": change.monitor.model_copy(update={"every_samples": 80})})
    assert kept_checkpoints(rare) == 5 + 2
