"""Load on servers that are made up, in time that jumps, and on the real app for a moment."""

import asyncio
import base64
import itertools
import json
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest

from kinfolk.client import NoAnswerError, RefusedError
from kinfolk.errors import ConfigError
from kinfolk_pipelines import bench, cli
from kinfolk_pipelines.load import Exchange, Load, drive, figures, poisson_times, spread
from kinfolk_pipelines.wire import Reply, Wire

GOOD = Reply(200, 100, 1.0, 2.0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is that of the next timer: nobody waits."""

    def __init__(self):
        super().__init__()
        self.now, select = 1000.0, self._selector.select

        def jump(timeout):
            assert timeout is not None, "everybody waits for ever"
            self.now += timeout
            return select(0)

        self._selector.select = jump

    def time(self):
        return self.now


class Pretended:
    """A connection to a server that takes ``service_s(now)`` for a request, one at a time on each connection."""

    def __init__(self, service_s, reply=GOOD):
        self.service_s, self.reply, self.asked = service_s, reply, []
        self.busy = self.most_busy = self.closed = 0

    async def ask(self, body):
        loop = asyncio.get_running_loop()
        self.asked.append((loop.time() - 1000, body))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(self.service_s(loop.time() - 1000))
        finally:
            self.busy -= 1
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def close(self):
        self.closed += 1


def driven(load, server):
    bodies = (str(number).encode() for number in itertools.count())
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(drive(load, bodies, lambda: server))


def test_requests_are_put_on_and_counted_without_torch_and_ray():
    code = "import sys, json, kinfolk_pipelines.load; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "ray", "mlflow", "fastapi", "pydantic", "httpx"}


def test_random_times_are_those_of_a_poisson_process():
    times = np.array(list(poisson_times(50, 400, seed=1)))
    gaps = np.diff(times, prepend=0)
    assert (gaps > 0).all()
    assert times[-1] < 400
    assert abs(len(times) - 20_000) < 4 * 20_000**0.5
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # exponential: as far spread as long
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)
    assert list(poisson_times(50, 4, seed=1)) == list(times[times < 4])
    assert list(poisson_times(50, 4, seed=2)) != list(times[times < 4])


@pytest.mark.parametrize("connections", [1, 4])
def test_a_closed_load_keeps_as_many_on_their_way_as_there_are_connections(connections):
    load, server = Load(connections, seconds=10, warm_up_s=2), Pretended(lambda now: 0.125)
    found = figures(driven(load, server), load, samples=3)
    assert server.most_busy == connections
    assert found.requests == found.answered == 80 * connections
    assert found.requests_per_s == pytest.approx(8 * connections)
    assert found.samples_per_s == pytest.approx(24 * connections)
    assert found.latency_ms == pytest.approx(dict.fromkeys(found.latency_ms, 125))


@pytest.mark.parametrize("connections", [1, 3])
def test_an_open_load_counts_from_when_a_request_was_due(connections):
    """Latencies are those of a queue with as many servers as connections, first come first served."""
    load, service_s = Load(connections, seconds=20, warm_up_s=0, rate=10 * connections, seed=3), 0.09
    exchanges = sorted(driven(load, Pretended(lambda now: service_s)), key=lambda each: each.due_s)
    free_s, expected = [0.0] * connections, []
    for due_s in poisson_times(load.rate, 20, seed=3):
        started_s = max(due_s, min(free_s))
        free_s[free_s.index(min(free_s))] = started_s + service_s
        expected.append((due_s, started_s, started_s + service_s))
    assert [(each.due_s, each.sent_s, each.ended_s) for each in exchanges] == pytest.approx(
        np.array(expected), abs=1e-6
    )
    assert figures(exchanges, load, 1).latency_ms["p99"] > 2 * service_s * 1e3  # some had to wait


def test_a_server_that_stalls_cannot_hide_it():
    def service_s(now):
        return 12 - now if 7 <= now < 12 else 0.01

    loads = [Load(2, seconds=20, rate=rate) for rate in (None, 50)]
    closed, opened = (figures(driven(load, Pretended(service_s)), load, 1) for load in loads)
    assert closed.latency_ms["p99"] < 11  # two requests of thousands saw it
    assert opened.latency_ms["p90"] > 3000  # a quarter of all were due meanwhile
    assert opened.latency_ms["max"] == pytest.approx(5000, abs=100)
    assert opened.unsent_ms["p90"] > 3000


def test_the_warm_up_is_not_counted():
    load, server = Load(1, seconds=4, warm_up_s=2), Pretended(lambda now: 0.5 if now < 2 else 0.1)
    exchanges = driven(load, server)
    found = figures(exchanges, load, 1)
    assert len(exchanges) == 44
    assert found.requests == 40
    assert found.latency_ms["max"] == pytest.approx(100)
    assert found.bytes == 4000
    assert (found.queued_ms["mean"], found.computed_ms["max"]) == (1, 2)


def test_rates_are_of_what_came_while_it_was_measured():
    load = Load(seconds=10, warm_up_s=2)
    times = [(1.0, 1.9), (1.5, 2.5), (3.0, 4.0), (11.0, 12.5), (11.5, 12.6), (12.0, 12.1)]
    found = figures([Exchange(due, due, ended, GOOD) for due, ended in times], load, samples=4)
    assert found.requests == 3
    assert found.requests_per_s == pytest.approx(0.2)  # two came, one of them asked for before
    assert found.samples_per_s == pytest.approx(0.8)
    assert found.bytes_per_s == pytest.approx(20)
    assert found.latency_ms["max"] == pytest.approx(1500)


def test_failures_are_told_by_what_they_are_and_have_no_latency():
    load = Load(seconds=10, warm_up_s=0)
    refused, ended = Reply(503, 7, None, None), [1.5, 9.0, 9.5, 9.6, 9.7]
    got = [(GOOD, ""), (refused, ""), (refused, ""), (None, "no answer"), (Reply(304, 0, None, None), "")]
    found = figures([Exchange(1.0, 1.0, at, *each) for at, each in zip(ended, got, strict=True)], load, 1)
    assert found.failed == {"503": 2, "no answer": 1, "304": 1}
    assert (found.requests, found.answered, found.bytes) == (5, 1, 100)
    assert found.latency_ms["max"] == pytest.approx(500)


def test_a_server_that_cannot_keep_up_leaves_requests_unsent_but_counted():
    load = Load(1, seconds=10, warm_up_s=0, rate=20, timeout_s=5)
    found = figures(driven(load, Pretended(lambda now: 1.0)), load, 1)
    assert found.requests == len(list(poisson_times(20, 10, seed=0)))
    assert found.answered == pytest.approx(16, abs=1)
    assert list(found.failed) == ["not sent in time"]


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (ConnectionRefusedError(), "no answer"),
        (EOFError(), "no answer"),
        (ValueError(), "no readable answer"),
        (None, "no answer in time"),
    ],
)
def test_a_dead_server_is_told_and_not_run_into(trouble, told):
    load = Load(2, seconds=10, warm_up_s=0, timeout_s=3)
    server = Pretended(lambda now: 99 if trouble is None else 0.0, trouble)
    found = figures(driven(load, server), load, 1)
    assert found.failed == {told: found.requests}
    assert 4 <= found.requests <= 220
    assert server.closed == found.requests + 2


def test_quantiles_are_values_that_were_seen():
    assert spread(list(range(1, 101))) == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert spread([3.0, 1.0]) == {"mean": 2, "p50": 1, "p90": 3, "p99": 3, "max": 3}
    assert spread([]) == {}


def test_requests_share_no_sample_and_say_what_was_set():
    made = [json.loads(body) for body in itertools.islice(bench.bodies({"n": 4, "pace": "uneven"}, 7, 4), 3)]
    assert made == [{"n": 4, "pace": "uneven", "seed": seed} for seed in (7, 11, 15)]
    assert json.loads(next(bench.bodies({}, 0, 1))) == {"seed": 0}


def test_a_file_is_sent_as_it_is(tmp_path):
    (tmp_path / "x.png").write_bytes(b"picture")
    (body,) = itertools.islice(bench.bodies({"x": str(tmp_path / "x.png")}, 0, 1), 1)
    assert base64.b64decode(json.loads(body)["x"][0]) == b"picture"


@pytest.fixture
def exchanged():
    """Ask a server that answers its connections by a script, each a list of what it sends before it closes."""

    def run(connections, count=1, token=None):
        async def scenario():
            script, seen = iter(connections), []

            async def handle(reader, writer):
                for sent in next(script):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    seen.append((head.decode(), await reader.readexactly(length)))
                    writer.write(sent)
                writer.close()

            async with await asyncio.start_server(handle, "127.0.0.1") as server:
                port = server.sockets[0].getsockname()[1]
                wire = Wire(urlsplit(f"http://127.0.0.1:{port}/v1/models/a/sample"), token)
                replies = []
                for number in range(count):
                    replies.append(await wire.ask(b"%d" % number))
                    await asyncio.sleep(0.01)  # the server may close
                wire.close()
            return replies, seen

        return asyncio.run(scenario())

    return run


FIXED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKinfolk-Queued-Ms: 1.25\r\nKINFOLK-COMPUTED-MS: 2\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"


def test_a_connection_stays_open_and_is_opened_again_once_it_was_closed(exchanged):
    replies, seen = exchanged([[FIXED, CHUNKED, FIXED], [FIXED]], count=4, token="key")
    assert replies == [Reply(200, 5, 1.25, 2.0), Reply(503, 21, None, None), *[Reply(200, 5, 1.25, 2.0)] * 2]
    assert [body for _, body in seen] == [b"0", b"1", b"2", b"3"]
    head = seen[0][0]
    assert head.startswith("POST /v1/models/a/sample HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nAuthorization: Bearer key\r\n" in head
    closing = FIXED.replace(b"Content", b"Connection: close\r\nContent", 1)
    assert [reply.status for reply in exchanged([[closing, FIXED], [CHUNKED]], count=2)[0]] == [200, 503]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([[b""]], asyncio.IncompleteReadError),
        ([[FIXED[:-1]]], asyncio.IncompleteReadError),
        ([[FIXED, FIXED[:30]], [FIXED]], asyncio.IncompleteReadError),
        ([[b"SSH-2.0\r\n\r\n"]], ValueError),
        ([[b"x" * 100_000]], ValueError),
        ([[b"HTTP/1.1 200 OK\r\n\r\n"]], ValueError),
    ],
)
def test_an_answer_that_is_none_is_no_answer(exchanged, script, error):
    with pytest.raises(error):
        exchanged(script, count=sum(map(len, script[:1])))


MISTAKES = [
    (["walk"], "is no address of a task"),
    (["ftp://127.0.0.1/v1/models/walk/sample"], "is no address of a task"),
    (["http://127.0.0.1:x/v1/models/walk/sample"], "is no address of a task"),
    (["http://127.0.0.1/v1/models/walk"], "is no address of a task"),
    (["http://127.0.0.1/v1/models/walk/sample?n=1"], "is no address of a task"),
    (["{walk}/sampel"], "Did you mean 'sample'? Its tasks: sample,"),
    (["{walk}x/sample"], "Did you mean 'walk'?"),
    (["{walk}/sample", "--rate", "0"], "--rate 0.0: use a number above 0"),
    (["{walk}/sample", "--rate", "nan"], "--rate nan"),
    (["{walk}/sample", "--connections", "0"], "--connections 0"),
    (["{walk}/sample", "--seconds", "-1"], "--seconds -1"),
    (["{walk}/sample", "--timeout", "0"], "--timeout 0"),
    (["{walk}/sample", "--warm-up", "-1"], "--warm-up -1"),
    (["{walk}/sample", "--set", "stesp=4"], "Did you mean 'steps'?"),
    (["{walk}/sample", "--set", "n"], "--set takes key=value"),
    (["{walk}/sample", "--set", "seed=1"], "--seed says which is the first"),
    (["{walk}/reconstruct"], "x: reconstruct needs it"),
]


@pytest.fixture
def kinfolk(tmp_path, monkeypatch, capsys):
    """Run the command line; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["kinfolk", "bench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_a_mistake_ends_with_2_and_a_paragraph(kinfolk, serve, walk):
    address = f"{serve(walk)}/v1/models/walk"
    for words, said in MISTAKES:
        code, out, err = kinfolk(*(word.format(walk=address) for word in words))
        assert (code, out) == (2, ""), words
        assert said in err
        assert "Traceback" not in err


SHORT = ["--seconds", "1.5", "--warm-up", "0.3", "--connections", "4"]


def test_an_endpoint_is_measured(kinfolk, serve, walk):
    address = f"{serve(walk, token='key')}/v1/models/walk/sample"
    words = [address, *SHORT, "--set", "n=4", "--set", "steps=2", "--token", "key"]
    code, out, _ = kinfolk(*words, "--json", "--seed", "10")
    told = json.loads(out)
    assert code == 0
    assert told["failed"] == {}
    assert told["requests"] == told["answered"] > 10
    assert told["samples_per_s"] == pytest.approx(4 * told["requests_per_s"])
    assert told["bytes"] > 50 * told["requests"]
    assert 0 < told["computed_ms"]["p50"] < told["latency_ms"]["p99"] <= told["latency_ms"]["max"]
    seeds = [seed for call in walk.module.watch.started for seed in call]
    assert sorted(set(seeds)) == list(range(10, 10 + len(set(seeds))))
    assert len(seeds) - len(set(seeds)) == 5  # those of the first request, and the row that told its price
    code, out, _ = kinfolk(*words, "--rate", "100")
    assert code == 0
    for word in ("requests/s", "samples/s", "p99", "latency since due", "until sent", "queued", "computed"):
        assert word in out


def test_tasks_on_files_are_measured(kinfolk, serve, walk, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 4, 4), dtype=np.uint8))
    code, out, _ = kinfolk(f"{serve(walk)}/v1/models/walk/reconstruct", *SHORT, "--set", "x=x.npy", "--json")
    told = json.loads(out)
    assert (code, told["failed"], told["samples_per_answer"]) == (0, {}, 3)


def test_nothing_measured_ends_with_1(kinfolk, serve, walk, monkeypatch):
    async def lost(load, bodies, connect):
        return [Exchange(1.0, 1.0, 1.1, None, "no answer"), Exchange(1.2, 1.2, 1.3, Reply(503, 9, None, None))]

    address = f"{serve(walk)}/v1/models/walk/sample"
    monkeypatch.setattr(bench, "drive", lost)
    code, out, _ = kinfolk(address, *SHORT)
    assert code == 1
    assert "1 with no answer, 1 with 503" in out


def test_what_the_server_says_reaches_who_measures(serve, walk):
    address = serve(walk, max_n=8)
    with pytest.raises(RefusedError, match="less than or equal to 8") as caught:
        bench.bench(f"{address}/v1/models/walk/sample", Load(), ["n=9"])
    assert caught.value.field == "n"
    with pytest.raises(ConfigError, match="no task"):
        bench.bench(f"{address}/v1/models/walk/none", Load())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models/walk/sample"
    with pytest.raises(NoAnswerError, match="Is the server up"):
        bench.bench(nobody, Load())
