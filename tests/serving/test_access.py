import hmac

import pytest
from pydantic import ValidationError

from kinfolk.serving.access import Access, Bucket, Gate, holders


def test_a_token_is_its_holders_and_nobody_elses():
    gate = Gate([Access(name="a", token="secret-a"), Access(name="b", token="secret-b")])
    assert gate.holder(b"Bearer secret-a").name == "a"
    assert gate.holder(b"Bearer secret-b").name == "b"
    for wrong in (b"", b"Bearer", b"Bearer secret-c", b"secret-a", b"bearer secret-a", b"Bearer secret-a ", b"\xff"):
        assert gate.holder(wrong) is None
    assert not gate.open
    assert Gate([]).open


def test_every_token_is_compared_whoever_asks(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    gate = Gate([Access(name=name, token=f"secret-{name}") for name in "abc"])
    for given in (b"Bearer secret-a", b"Bearer secret-c", b"nothing"):
        gate.holder(given)
    assert len(compared) == 9


def test_a_rate_holds_on_average_and_a_burst_goes_through():
    now = [0.0]
    bucket = Bucket(per_s=2.0, size=5, clock=lambda: now[0])
    assert [bucket.wait_s() for _ in range(5)] == [0.0] * 5
    assert bucket.wait_s() == pytest.approx(0.5)
    taken = 0
    for step in range(1000):  # 100 s in steps of 0.1 s
        now[0] = step / 10
        taken += bucket.wait_s() == 0
    assert taken == pytest.approx(200, abs=2)
    now[0] = 10_000.0
    assert [bucket.wait_s() for _ in range(6)][4:] == [0.0, pytest.approx(0.5)]


def test_holders_of_one_name_do_not_share_a_rate():
    free, bound = Access(name="ann", token="a"), Access(name="ann", token="b", requests_per_s=0.1, burst=1)
    gate = Gate([free, bound])
    assert [gate.retry_after_s(gate.holder(b"Bearer b")) for _ in range(2)] == [0, 10]
    assert [gate.retry_after_s(gate.holder(b"Bearer a")) for _ in range(5)] == [0] * 5


def test_holders_have_rates_of_their_own_in_whole_seconds():
    now = [0.0]
    slow = Access(name="slow", token="secret-s", requests_per_s=0.3, burst=1)
    gate = Gate([slow, free := Access(name="free", token="secret-f")], clock=lambda: now[0])
    assert gate.retry_after_s(slow) == 0
    assert gate.retry_after_s(slow) == 4
    assert {gate.retry_after_s(free) for _ in range(100)} == {0}


def test_a_token_shows_in_no_text():
    assert "secret-a" not in repr(Access(name="a", token="secret-a"))


def test_a_holder_samples_unless_an_admin():
    assert Access(name="a", token="secret-a").role == "sample"
    assert holders("secret")[0].role == "sample"
    with pytest.raises(ValidationError, match="'sample' or 'admin'"):
        Access(name="a", token="secret-a", role="owner")
