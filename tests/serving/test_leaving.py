import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

BODY = b'{"steps": 900, "seed": 1}'


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_nothing_is_computed_for_a_client_who_has_left(serve, walk, accept):
    watch = walk.module.watch
    watch.on_call = lambda: time.sleep(0.002)
    address = urlsplit(serve(walk))
    head = f"POST /v1/models/walk/sample HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        while len(watch.calls) < 10:
            time.sleep(0.002)
    time.sleep(0.2)
    calls = len(watch.calls)
    time.sleep(0.1)
    assert calls == len(watch.calls) < 400


def test_whoever_stays_is_answered_on_one_connection_again_and_again(serve, walk):
    with httpx.Client(base_url=serve(walk)) as client:
        answers = [client.post("/v1/models/walk/sample", json={"seed": seed, "steps": 3}) for seed in range(20)]
        streamed = client.post("/v1/models/walk/sample", json={"seed": 1}, headers={"Accept": "text/event-stream"})
    assert {answer.status_code for answer in answers} == {200}
    assert "event: done" in streamed.text
