import asyncio

import httpx
import pytest

from kinfolk.serving.access import holders
from kinfolk.serving.directory import build_app

PATH = "/v1/models/walk/sample"
SITE = "https://site.example"
PREFLIGHT = {
    "Origin": SITE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,kinfolk-timeout",
}


@pytest.fixture
def ask(make_host, walk):
    """One exchange with an app whose answers pages of ``origins`` may read."""

    def exchange(method, path=PATH, *, origins=(SITE,), token=None, **request):
        async def scenario():
            host = make_host(walk)
            transport = httpx.ASGITransport(build_app([host], holders(token), origins), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answer = await client.request(method, path, **request)
            await host.close()
            return answer

        return asyncio.run(scenario())

    return exchange


def listed(answer, name):
    return {each.strip().lower() for each in answer.headers.get(name, "").split(",")}


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/images/generations", "/v1/models/walk/openapi.json"])
def test_a_page_of_a_named_site_may_ask_whether_it_may_without_the_token(ask, path):
    answer = ask("OPTIONS", path, token="secret", headers=PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == SITE
    assert {"authorization", "content-type", "kinfolk-timeout"} <= listed(answer, "Access-Control-Allow-Headers")
    assert {"get", "post"} <= listed(answer, "Access-Control-Allow-Methods")


def test_it_reads_answers_with_all_that_they_tell_and_refusals(ask):
    answer = ask("POST", json={"seed": 1}, headers={"Origin": SITE})
    told = {name for name in answer.headers if name.startswith("kinfolk-") or name == "etag"}
    names = "model version family task seed calls evaluations queued-ms computed-ms"
    assert told == {"etag", *(f"kinfolk-{name}" for name in names.split())}
    assert told <= listed(answer, "Access-Control-Expose-Headers")
    assert ask("POST", token="secret", headers={"Origin": SITE}).headers["Access-Control-Allow-Origin"] == SITE
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_unit_is_told_as_well(ask):
    answer = ask("POST", "/v1/models/walk/log_prob", json={"x": [[[0] * 4] * 4]}, headers={"Origin": SITE})
    assert answer.headers["Kinfolk-Unit"]
    assert "kinfolk-unit" in listed(answer, "Access-Control-Expose-Headers")


@pytest.mark.parametrize("origins", [(), ("https://other.example",), ("https://site.example:8443",)])
def test_a_page_of_another_site_is_told_nothing(ask, origins):
    before = ask("OPTIONS", origins=origins, headers=PREFLIGHT)
    answer = ask("POST", origins=origins, json={}, headers={"Origin": SITE})
    for each in (before, answer):
        assert "Access-Control-Allow-Origin" not in each.headers
    assert before.status_code >= 400


def test_every_site_may_read_where_that_is_said(ask):
    assert ask("OPTIONS", origins=("*",), headers=PREFLIGHT).headers["Access-Control-Allow-Origin"] == "*"


FORMS = [
    {"content": b""},
    {"files": {"x": b"1"}},
    {"data": {"n": "1"}},
    {"content": b"{}", "headers": {"Content-Type": "text/plain; a=application/json"}},
    {"content": b"{}", "headers": {"Content-Type": " Text/Plain"}},
    {"content": b'{"prompt": ""}'},  # of no type
]
PATHS = [PATH, "/v1/images/generations", "/v1/models/walk/interpolate"]


def from_a_page(request, origin, **more):
    return {**request, "headers": {"Origin": origin, **request.get("headers", {}), **more}}


@pytest.mark.parametrize("request_", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_a_form_of_another_site_cannot_make_the_server_work(ask, walk, path, request_):
    for origin in (SITE, "null", "http://test.example", "http://test:81", "http://a.test"):
        answer = ask("POST", path, origins=(), **from_a_page(request_, origin))
        assert (answer.status_code, answer.json()["error"]["field"]) == (403, "Origin")
    assert not walk.module.watch.started


def test_neither_this_site_nor_a_named_one_is_another(ask):
    bare = {"content": b""}
    for origin, origins in (("http://test", ()), ("https://test", ()), (SITE, (SITE,)), (SITE, ("*",))):
        assert ask("POST", origins=origins, **from_a_page(bare, origin)).status_code == 200
    assert ask("POST", origins=(), **from_a_page(bare, "http://TEST:8000", Host="test:8000")).status_code == 403
    assert ask("POST", origins=(), **from_a_page(bare, "http://test:8000", Host="TEST:8000")).status_code == 200
    assert ask("POST", origins=(), **from_a_page(bare, "null", Host="")).status_code == 403


def test_what_a_browser_asks_for_first_and_what_only_reads_needs_no_second_refusal(ask):
    assert ask("POST", origins=(), **from_a_page({"json": {}}, SITE)).status_code == 200
    assert ask("GET", "/v1/models", origins=(), headers={"Origin": SITE}).status_code == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_the_images_api_takes_json_that_says_so_and_nothing_else(ask, walk, kind):
    headers = {"Content-Type": kind} if kind else {}
    answer = ask("POST", "/v1/images/generations", content=b'{"prompt": ""}', headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (415, "Content-Type")
    assert not walk.module.watch.started
