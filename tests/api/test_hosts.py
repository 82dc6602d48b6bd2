import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from api_app.guard import Edge, named_hosts, serves
from posthouse.errors import ConfigurationError

RUNS = "/api/v1/runs"
OURS = named_hosts(" Runs.Example.org , *.example.com.,, ")


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LocalHost:8000", "localhost.", "api", "api:80", "my_host", "127.0.0.1",
     "127.0.0.1:8000", "10.1.2.3", "93.184.215.14", "[::1]", "[::1]:8000", "[2606:4700::1]",
     "[::ffff:127.0.0.1]:1", "api:"],
)  # fmt: skip
def test_a_host_of_this_machine_or_this_house_is_served(host: str) -> None:
    assert serves(host, frozenset())


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.nip.io", "localhost.evil.example",
     "runs.example.org", "evil.localhost", "127.1.evil", "256.1.1.1", "127.0.0.1:x",
     "[::1", "::1", "[127.0.0.1]", "[a]", "[]", ".", ":80", "a b", "localhost:80:80", "user@api",
     "api,evil.example", "http://localhost", "localhost/", "a" * 254, "ex\u00e4mple", "localhost\n",
     "evil.example#localhost", "*", "*.example.com", "127.0.0.1%00.evil", "[::1%25lo]"],
)  # fmt: skip
def test_any_other_host_is_not_served(host: str) -> None:
    assert not serves(host, frozenset())


@pytest.mark.parametrize(
    "host",
    ["runs.example.org", "RUNS.example.ORG:443", "runs.example.org.", "a.example.com",
     "a.b.example.com:1", "localhost", "10.0.0.1"],
)  # fmt: skip
def test_a_named_host_is_served(host: str) -> None:
    assert serves(host, OURS)


@pytest.mark.parametrize(
    "host",
    ["example.org", "x.runs.example.org", "example.com", "badexample.com", "a.example.com.evil.net",
     "evil.net"],
)  # fmt: skip
def test_a_name_beside_the_named_is_not_served(host: str) -> None:
    assert not serves(host, OURS)


def test_a_star_serves_every_host() -> None:
    assert serves("evil.example", named_hosts("*"))
    assert serves("what ever", named_hosts("a.example,*"))


@pytest.mark.parametrize(
    "setting",
    ["https://a.example", "a.example:8000", "a b", "*a.example", "a.*.example", "a..example",
     "[::1]", "**", "*.", "b\u00fccher.example"],
)  # fmt: skip
def test_a_setting_that_is_no_name_is_told(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^POSTHOUSE_HOSTS: .* is no name of a host"):
        named_hosts(setting)


async def test_another_name_for_this_service_is_refused(api) -> None:
    evil = {"Host": f"evil.example:{api.port}", "X-Request-Id": "mine"}
    for method, path in (("GET", RUNS), ("POST", RUNS), ("GET", "/"), ("GET", "/health/ready")):
        answer = await api.client.request(method, path, headers=evil)
        body = answer.json()
        assert answer.status_code == 421
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == body["request_id"] == "mine"
        assert body["code"] == "invalid_request"
        assert "POSTHOUSE_HOSTS" in body["detail"]
        assert "evil" not in answer.text
    assert (await api.client.get("/health/live", headers=evil)).status_code == 200


async def test_a_refused_body_starts_no_run(api) -> None:
    order = {"workflow": "echo", "input": {"text": "a"}}
    refused = await api.client.post(RUNS, json=order, headers={"Host": "evil.example"})
    assert refused.status_code == 421
    assert (await api.client.get(RUNS)).json()["runs"] == []
    assert (await api.client.post(RUNS, json=order)).status_code == 202


async def raw(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.0\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nhOsT:\tevil.example \r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: \xff\r\n", b"421"),
        (b"GET / HTTP/1.1\r\nHost: " + b"a." * 5000 + b"\r\n", b"421"),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9\r\n", b"421"),
    ],
)
async def test_hosts_as_they_come_over_the_wire(api, head: bytes, status: bytes) -> None:
    assert (await raw(api.port, head + b"\r\n")).split(b" ")[1] == status


@pytest.fixture
async def ours() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.get("/")(lambda: "served")
    app.add_middleware(Edge, hosts=OURS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        yield client


async def test_an_application_takes_the_names_that_it_is_given(ours: httpx.AsyncClient) -> None:
    for host in ("runs.example.org", "a.example.com", "127.0.0.1", "localhost:8000"):
        assert (await ours.get(f"http://{host}/")).status_code == 200
    assert (await ours.get("http://example.com/")).status_code == 421
