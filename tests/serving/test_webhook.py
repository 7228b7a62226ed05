import asyncio
import json
import time

import httpx
import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from kinfolk.contract import RequestError
from kinfolk.serving.access import holders
from kinfolk.serving.directory import directory_app
from kinfolk.serving.webhook import ADDRESS, Board, Inbox, genuine, moved_model

SECRET = "between registry and server"


def message(name="walk", entity="model_version_alias", at=None, secret=SECRET):
    """A body and its headers as MLflow sends them."""
    body = json.dumps(
        {"entity": entity, "action": "created", "data": {"name": name, "alias": "champion", "version": "2"}}
    )
    sent = str(int(time.time() if at is None else at))
    signature = _generate_hmac_signature(secret, "delivery-1", sent, body)
    headers = {"x-mlflow-timestamp": sent, "x-mlflow-delivery-id": "delivery-1", "x-mlflow-signature": signature}
    return body.encode(), headers


def test_what_mlflow_signs_is_genuine_and_nothing_else():
    body, headers = message(at=1000)
    assert genuine(SECRET, headers, body, 1100.0)
    assert not genuine("another", headers, body, 1100.0)
    assert not genuine(SECRET, headers, body + b" ", 1100.0)
    assert not genuine(SECRET, headers, body, 1301.0)
    for name in headers:
        for value in ("", "1001", "v1,", "\u00b2"):
            assert not genuine(SECRET, {**headers, name: value}, body, 1001.0)
        assert not genuine(SECRET, {key: value for key, value in headers.items() if key != name}, body, 1001.0)


def test_a_message_names_the_model_whose_alias_moved():
    assert moved_model({"entity": "model_version_alias", "data": {"name": "walk"}}) == "walk"
    assert moved_model({"entity": "registered_model", "data": {"name": "walk"}}) is None
    for wrong in ({}, {"name": 3}, None, "walk"):
        with pytest.raises(RequestError, match="names its model"):
            moved_model({"entity": "model_version_alias", "data": wrong})


def test_who_waits_for_a_model_hears_of_it_and_of_no_other():
    async def scenario():
        board = Board()
        waiting = asyncio.create_task(board.wait("a", 0, 10))
        other = asyncio.create_task(board.wait("b", 0, 0.05))
        await asyncio.sleep(0.01)
        await board.move("a")
        return await waiting, await other, await board.wait("a", 0, 10), await board.wait("a", 1, 0.01)

    assert asyncio.run(scenario()) == (1, 0, 1, 1)


def told(body, headers, secret=SECRET, access=()):
    """What the root answers to a message, and how often it was passed on."""

    async def scenario():
        board = Board()
        inbox = Inbox(secret, board) if secret else None
        app = directory_app(None, None, access, inbox)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(ADDRESS, content=body, headers=headers)
        return answer.status_code, await board.wait("walk", 0, 0)

    return asyncio.run(scenario())


def test_a_signed_message_is_passed_on_without_a_bearer_token():
    assert told(*message()) == (204, 1)
    assert told(*message(), access=holders("token")) == (204, 1)
    assert told(*message("other")) == (204, 0)
    assert told(*message(entity="prompt")) == (204, 0)


def test_what_is_not_signed_is_refused():
    body, headers = message(secret="another")
    assert told(body, headers) == (401, 0)
    assert told(b"x" * 100_000, headers) == (413, 0)
    assert told(*message(), secret=None) == (404, 0)
