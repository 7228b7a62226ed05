import asyncio
import re
from importlib import resources

import httpx
import pytest

from kinfolk.serving.access import holders
from kinfolk.serving.directory import build_app

FOLDER = resources.files("kinfolk.serving") / "playground"
NAMES = sorted(file.name for file in FOLDER.iterdir())
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "png": "image/png"}
PATHS = {name: "/" if name == "index.html" else f"/playground/{name}" for name in NAMES}
TEXTS = [name for name in NAMES if not name.endswith(".png")]


@pytest.fixture
def get(make_host, walk):
    """The answer to a path, with the path on the wire as it is written: no client tidies it up."""

    def exchange(path, *, raw=None, token=None, headers=()):
        async def scenario():
            host = make_host(walk)
            sent = []
            scope = {
                "type": "http",
                "method": "GET",
                "path": path,
                "raw_path": raw or path.encode(),
                "query_string": b"",
                "headers": [(name.encode(), value.encode()) for name, value in headers],
                "root_path": "",
                "http_version": "1.1",
                "scheme": "http",
            }

            async def receive():
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message):
                sent.append(message)

            await build_app([host], holders(token))(scope, receive, send)
            await host.close()
            content = b"".join(message.get("body", b"") for message in sent[1:])
            return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=content)

        return asyncio.run(scenario())

    return exchange


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_served_as_what_it_is_and_allowed_nothing_from_elsewhere(get, name):
    answer = get(PATHS[name])
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["Content-Type"].partition(";")[0] == TYPES[name.rpartition(".")[2]]
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "'self' blob: data:"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    again = get(PATHS[name], headers=[("if-none-match", answer.headers["ETag"])])
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", TEXTS)
def test_no_file_names_another_host_or_holds_inline_code(name):
    text = (FOLDER / name).read_text()
    assert not re.findall(r"https?:|//\S", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if name.endswith(".html"):
        assert not re.findall(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=|<style", text)


def test_all_that_a_file_refers_to_is_there():
    page = (FOLDER / "index.html").read_text()
    wanted = {link.removeprefix("playground/") for link in re.findall(r'(?:src|href)="([^"#]+)"', page)}
    for name in NAMES:
        if name.endswith(".js"):
            wanted |= set(re.findall(r'from "\./([\w.]+)"', (FOLDER / name).read_text()))
    assert wanted | {"index.html"} == set(NAMES)


def test_no_module_is_long():
    lengths = {name: (FOLDER / name).read_text().count("\n") for name in NAMES if name.endswith(".js")}
    assert max(lengths.values()) < 200, lengths


def test_the_page_needs_no_token_and_the_models_do(get):
    for name in NAMES:
        assert get(PATHS[name], token="secret").status_code == 200
    for path in ("/v1/models", "/v1/models/walk", "/v1/models/walk/openapi.json", "/openapi.json", "/playground/"):
        assert get(path, token="secret").status_code == 401


TRICKS = [
    "/playground/../app.py",
    "/playground/..",
    "/playground/",
    "/playground",
    "/playground/../../serving/guard.py",
    "/playground/main.js\x00",
    "/playground/\x00",
    "/playground//main.js",
    "/playground/./main.js",
    "/playground/..\\app.py",
    "/playground/index.html",
    "/playground/__init__.py",
    "//playground/main.js",
    "/index.html",
    "/../app.py",
]


@pytest.mark.parametrize("path", TRICKS)
def test_no_other_path_leads_to_a_file(get, path):
    assert get(path).status_code == 404
    assert get(path, token="secret").status_code in (401, 404)


@pytest.mark.parametrize(
    "raw", [b"/playground/%2e%2e/app.py", b"/playground/%2e%2e%2fapp.py", b"/playground/main.js%00"]
)
def test_nor_does_one_that_is_encoded(get, raw):
    decoded = httpx.URL("http://test" + raw.decode()).path
    path = re.sub(r"%2e", ".", decoded, flags=re.IGNORECASE).replace("%2f", "/").replace("%00", "\x00")
    for each in (path, raw.decode()):  # a server decodes once; one that does not must not help either
        assert get(each, raw=raw).status_code == 404


def test_documents_of_models_need_nothing_from_elsewhere(get):
    for path in ("/docs", "/redoc", "/v1/models/walk/docs", "/v1/models/walk/redoc"):
        assert get(path).status_code in (404, 405)
