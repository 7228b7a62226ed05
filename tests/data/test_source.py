import subprocess
import sys

import pytest
import torch

from kinfolk.contract import DataSpec
from kinfolk.data.source import Rows, TensorSource, keep, stored_dtype
from kinfolk.errors import DataError

SPEC = DataSpec(kind="image", shape=(1, 2, 2), levels=17, classes=3)


def rows(count=10, spec=SPEC):
    x = torch.arange(count * spec.dims).remainder(spec.levels or 100).reshape(count, *spec.shape)
    label = torch.arange(count) % spec.classes if spec.classes else None
    return Rows(x.to(stored_dtype(spec)), label)


def source(count=10, spec=SPEC):
    stored = rows(count, spec)
    return TensorSource(spec, stored.x, stored.label)


def test_levels_come_out_on_the_scale_of_the_specification():
    x = torch.tensor([0, 8, 16, 4], dtype=torch.uint8).view(1, 1, 2, 2)
    taken = TensorSource(SPEC, x, torch.tensor([2])).take(0, 1)
    assert taken.x.flatten().tolist() == [-1.0, 0.0, 1.0, -0.5]
    assert taken.label.tolist() == [2]


def test_an_epoch_holds_every_sample_with_its_own_label():
    data = source()
    stored, drawn = data.take(0, 10), data.batch(3, 10, 20)
    order = [int((stored.x == x).flatten(1).all(1).nonzero()) for x in drawn.x]
    assert sorted(order) == list(range(10))
    assert torch.equal(drawn.label, stored.label[order])


def test_workers_shares_put_together_are_the_batch_of_one_worker():
    data = source()
    whole = data.batch(3, 24, 36)
    for workers in (2, 3, 4):
        share = 12 // workers
        parts = [data.batch(3, 24 + rank * share, 24 + (rank + 1) * share) for rank in range(workers)]
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        assert torch.equal(torch.cat([part.label for part in parts]), whole.label)


def test_tokens_stay_integers_and_continuous_data_stays_as_it_is():
    tokens = DataSpec(kind="tokens", shape=(4,), levels=1000)
    vectors = DataSpec(kind="vector", shape=(4,))
    assert source(spec=tokens).take(0, 2).x.dtype == torch.int64
    assert torch.equal(source(spec=vectors).take(2, 5).x, rows(spec=vectors).x[2:5])


def test_the_smallest_type_that_holds_the_levels_is_used():
    kinds = {2: torch.uint8, 256: torch.uint8, 257: torch.int32, None: torch.float32}
    for levels, dtype in kinds.items():
        assert stored_dtype(DataSpec(kind="vector", shape=(1,), levels=levels)) == dtype


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 2), (5, 11)])
def test_stored_order_has_an_end_that_is_said(start, stop):
    with pytest.raises(DataError, match=rf"\[{start}, {stop}\).* 10"):
        source().take(start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3)])
def test_the_stream_has_a_start_and_no_empty_batch(start, stop):
    with pytest.raises(DataError, match="0 <= start < stop"):
        source().batch(0, start, stop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(10, 1, 2, 3, dtype=torch.uint8)}, r"shape \(1, 2, 3\), the record says \(1, 2, 2\)"),
        ({"x": torch.zeros(10, 1, 2, 2)}, "float32.*uint8"),
        ({"x": torch.full((10, 1, 2, 2), 17, dtype=torch.uint8)}, r"level is outside \[0, 17\), got 17 to 17"),
        ({"label": None}, "labels are missing.*classes=3"),
        ({"label": torch.arange(10)}, r"label is outside \[0, 3\), got 0 to 9"),
        ({"label": torch.zeros(9, dtype=torch.int64)}, "one int64 for each sample"),
        ({"label": torch.zeros(10)}, "float32"),
    ],
)
def test_rows_that_differ_from_the_specification_are_refused(change, message):
    stored = rows()
    with pytest.raises(DataError, match=message):
        TensorSource(SPEC, **{"x": stored.x, "label": stored.label, **change})


def test_values_that_are_not_finite_are_refused():
    spec = DataSpec(kind="vector", shape=(2,))
    with pytest.raises(DataError, match="not finite"):
        TensorSource(spec, torch.tensor([[1.0, float("nan")]]))


def test_labels_of_data_without_classes_are_refused():
    spec = DataSpec(kind="vector", shape=(2,))
    with pytest.raises(DataError, match=r"labels are present.*classes=None"):
        TensorSource(spec, torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="without samples"):
        TensorSource(DataSpec(kind="vector", shape=(2,)), torch.zeros(0, 2))


def test_all_256_levels_of_a_byte_are_allowed():
    x = torch.arange(256, dtype=torch.uint8).view(-1, 1)
    spec = DataSpec(kind="vector", shape=(1,), levels=256)
    assert TensorSource(spec, x).take(0, 256).x.max() == 1


def test_a_machine_without_pyarrow_or_numpy_can_draw_batches():
    program = """
import sys
for name in ("numpy", "pyarrow", "pandas", "PIL", "ray", "mlflow"):
    sys.modules[name] = None
import torch
from kinfolk.contract import DataSpec
from kinfolk.data.source import TensorSource
source = TensorSource(DataSpec(kind="vector", shape=(1,), levels=4), torch.arange(4, dtype=torch.uint8).view(-1, 1))
print(sorted(source.batch(0, 0, 4).x.flatten().tolist()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [round(value, 3) for value in eval(done.stdout)] == [-1.0, -0.333, 0.333, 1.0]


def test_kept_classes_are_all_there_is_in_stored_order():
    kept, whole = keep(source(), [2, 0]), source()
    wanted = [i for i in range(10) if i % 3 != 1]
    assert torch.equal(kept.take(0, len(kept)).x, whole.take(0, 10).x[wanted])
    assert set(kept.batch(1, 0, 70).label.tolist()) == {0, 2}
    assert keep(whole, ()) is whole


@pytest.mark.parametrize(
    ("labels", "spec", "said"),
    [((3,), SPEC, "Use 0 to 2"), ((0,), SPEC.model_copy(update={"classes": None}), "has no classes")],
)
def test_a_class_that_is_not_there_cannot_be_kept(labels, spec, said):
    with pytest.raises(DataError, match=said):
        keep(source(spec=spec), labels)
