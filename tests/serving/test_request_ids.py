import asyncio
import logging
import re

import httpx
import pytest

from kinfolk.serving.directory import build_app

PATH = "/v1/models/walk/sample"


@pytest.fixture
def ask(make_host, walk):
    """The answers to the same request with each of several sets of headers."""

    def exchange(*headers, path=PATH, body=None):
        async def scenario():
            host = make_host(walk)
            transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answers = [await client.post(path, json=body, headers=each) for each in headers]
            await host.close()
            return answers

        return asyncio.run(scenario())

    return exchange


@pytest.mark.parametrize("given", ["a", "3f2-A_b.9", "x" * 64])
@pytest.mark.parametrize("path", [PATH, "/v1/images/generations", "/nowhere"])
def test_a_name_that_a_client_gives_is_told_again_once(ask, path, given):
    (answer,) = ask({"X-Request-ID": given}, path=path)
    assert answer.headers.get_list("X-Request-ID") == [given]


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "\u00e9", 'a"b', "a,b"])
def test_a_name_that_is_not_plain_is_replaced(ask, given):
    (answer,) = ask([("X-Request-ID", given.encode("latin-1"))])
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_two_names_are_none_and_each_request_without_has_its_own(ask):
    answers = ask([("X-Request-ID", "a"), ("X-Request-ID", "b")], {}, {})
    assert len({answer.headers["X-Request-ID"] for answer in answers} - {"a", "b"}) == 3


def test_a_fault_is_logged_under_the_name_of_its_request(ask, caplog, monkeypatch):
    monkeypatch.setattr("kinfolk.serving.endpoint.settings_in", None)
    with caplog.at_level(logging.ERROR):
        (answer,) = ask({"X-Request-ID": "mine"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-ID"] == "mine"
    assert "Request mine failed." in [record.message for record in caplog.records]
