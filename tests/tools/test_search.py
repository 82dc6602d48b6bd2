import asyncio
import gzip
import json
import logging
import traceback
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from posthouse.errors import ConfigurationError, ToolFailed
from posthouse.logs import configure_logs
from posthouse.tools.corpus import Corpus
from posthouse.tools.model import SearchHit, SearchProvider
from posthouse.tools.search import (
    SearchCaps,
    WebSearch,
    chosen_engine,
    search_engines,
    search_provider,
)

KEY = "canary-key-0123456789abcdef"
THEIRS = "canary-words-of-the-provider"
ANSWERS = Path(__file__).parent / "engines" / "answers"
ENGINES = search_engines()
FOUND = b'{"results": [{"title": "A", "url": "https://a.example/", "content": "of a"}]}'


@dataclass(frozen=True)
class Asked:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Gives every request the same answer, and keeps what it was asked."""

    answer: bytes = b""
    port: int = 0
    hold: bool = False
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def give(self, body: bytes, status: int = 200, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} {THEIRS}", f"Content-Length: {len(body)}", *headers, "", ""]
        self.answer = "\r\n".join(lines).encode() + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.asked.append(await self._request(reader))
                writer.write(self.answer)
                await writer.drain()
                if self.hold:
                    await reader.read()  # until the client is gone
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Asked:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(method, target, headers, body)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


def asking(server: Server, name: str = "tavily", **options: Any) -> Any:
    search = WebSearch(ENGINES[name], url=server.url, key=KEY, **options)
    return aclosing(search)


async def refusal(search: WebSearch, query: str = "post horses") -> ToolFailed:
    with pytest.raises(ToolFailed) as raised:
        await search.search(query, 5)
    return raised.value


SENT = {
    "brave": ("GET", "/res/v1/web/search",
              {"q": ["post horses"], "count": ["5"], "result_filter": ["web"],
               "text_decorations": ["false"]},
              {"x-subscription-token": KEY}, None),
    "searxng": ("GET", "/search", {"q": ["post horses"], "format": ["json"]},
                {"authorization": f"Bearer {KEY}"}, None),
    "tavily": ("POST", "/search", {}, {"authorization": f"Bearer {KEY}"},
               {"query": "post horses", "max_results": 5, "search_depth": "basic"}),
    "serpapi": ("GET", "/search.json",
                {"engine": ["google"], "q": ["post horses"], "api_key": [KEY]}, {}, None),
    "exa": ("POST", "/search", {}, {"x-api-key": KEY},
            {"query": "post horses", "numResults": 5, "type": "auto",
             "contents": {"highlights": True}}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENGINES)
async def test_each_engine_is_asked_as_it_documents_and_its_answer_is_read(
    name: str, server: Server
) -> None:
    server.give((ANSWERS / f"{name}.json").read_bytes())
    async with asking(server, name) as search:
        hits = await search.search(" post horses ", 5)
    assert [hit.url for hit in hits] == [
        "https://history.example/relays", "https://roads.example/stages?lang=en"
    ]  # fmt: skip
    assert hits[0].title == "Relays & riders"
    assert hits[0].snippet.startswith("A post horse ran one stage")
    method, path, params, headers, body = SENT[name]
    (asked,) = server.asked
    parts = urlsplit(asked.target)
    assert (asked.method, parts.path, parse_qs(parts.query)) == (method, path, params)
    assert headers.items() <= asked.headers.items()
    assert asked.headers["accept"] == "application/json"
    assert asked.headers["accept-encoding"] == "gzip"
    assert (json.loads(asked.body) if asked.body else None) == body


async def test_one_connection_serves_many_searches_and_no_cookie_is_kept(server: Server) -> None:
    server.give(FOUND, 200, "Set-Cookie: run=1; Path=/")
    async with asking(server) as search:
        provider: SearchProvider = search
        for _ in range(3):
            assert len(await provider.search("q", 5)) == 1
    assert server.connections == 1
    assert all("cookie" not in asked.headers for asked in server.asked)


async def test_no_more_than_the_limit_is_given(server: Server) -> None:
    pages = [{"title": "a", "url": f"https://a.example/{n}"} for n in range(30)]
    server.give(json.dumps({"results": pages}).encode())
    async with asking(server) as search:
        assert len(await search.search("q", 3)) == 3


async def test_queries_that_break_encodings_are_sent(server: Server) -> None:
    server.give((ANSWERS / "brave.json").read_bytes())
    async with asking(server, "brave") as search:
        await search.search("größe \ud800 & q=2 #\0", 5)
    (asked,) = server.asked
    assert parse_qs(urlsplit(asked.target).query)["q"] == ["größe ? & q=2 #\0"]


@pytest.mark.parametrize("query", ["", "  \n"])
async def test_an_empty_query_is_not_sent(query: str, server: Server) -> None:
    async with asking(server) as search:
        assert (await refusal(search, query)).kind == "invalid_arguments"
    assert not server.asked


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(400, False), (404, False), (408, True), (422, False), (425, True), (429, True), (500, True),
     (502, True), (503, True), (529, True), (302, False), (304, False)],
)  # fmt: skip
async def test_a_status_is_told(status: int, retryable: bool, server: Server) -> None:
    server.give(THEIRS.encode(), status)
    async with asking(server) as search:
        with capture_logs() as logs:
            error = await refusal(search)
    assert (error.kind, error.status_code, error.retryable) == ("http_error", status, retryable)
    assert str(error) == f"the search engine answered with status {status}"
    assert logs == [
        {"event": "search_failed", "log_level": "info", "kind": "http_error", "engine": "tavily",
         "status": status, "cause": None}
    ]  # fmt: skip


async def test_a_redirect_is_not_followed(server: Server) -> None:
    server.give(b"", 302, "Location: /elsewhere")
    async with asking(server) as search:
        assert (await refusal(search)).status_code == 302
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 402, 403, 432, 433])
async def test_a_refused_key_wakes_the_operator_once_until_it_works_again(
    status: int, server: Server
) -> None:
    async with asking(server) as search:
        with capture_logs() as logs:
            for answer in (status, status, 200, status):
                server.give(FOUND, answer)
                if answer == 200:
                    await search.search("q", 5)
                else:
                    error = await refusal(search)
                    assert (error.kind, error.status_code) == ("http_error", status)
                    assert not error.retryable
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("search_refused", "warning")
    ] * 2
    assert logs[0]["status"] == status


@pytest.mark.parametrize(
    "beginning", [b"", b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n{"], ids=["silent", "cut"]
)
async def test_a_slow_engine_is_left(beginning: bytes, server: Server) -> None:
    server.answer, server.hold = beginning, True
    async with asking(server, caps=SearchCaps(seconds=0.2)) as search:
        error = await refusal(search)
    assert (error.kind, error.retryable) == ("timeout", True)


async def test_an_engine_that_drips_is_left(server: Server) -> None:
    """Each piece arrives in time; only the whole does not."""
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            gone.set()
        finally:
            writer.close()

    listener = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        search = WebSearch(ENGINES["brave"], url=url, key=KEY, caps=SearchCaps(seconds=0.3))
        async with aclosing(search):
            assert (await refusal(search)).kind == "timeout"
        await asyncio.wait_for(gone.wait(), 5)


async def test_what_cannot_be_reached_is_told(free_tcp_port: int) -> None:
    search = WebSearch(ENGINES["exa"], url=f"http://127.0.0.1:{free_tcp_port}", key=KEY)
    async with aclosing(search):
        with capture_logs() as logs:
            error = await refusal(search)
    assert (error.kind, error.retryable, error.status_code) == ("http_error", True, None)
    assert str(error) == "the search engine could not be reached"
    assert logs[0]["cause"] == "ConnectError"


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 50_000 + b"\r\n"],
    ids=["no HTTP", "bad chunk", "endless headers"],
)  # fmt: skip
async def test_a_broken_answer_is_told(answer: bytes, server: Server) -> None:
    server.answer = answer
    async with asking(server) as search:
        assert (await refusal(search)).kind == "http_error"


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("body", [THEIRS.encode(), b"", b"[]", b'{"a": 1}', b"\xff"])
async def test_another_form_is_told(name: str, body: bytes, server: Server) -> None:
    server.give(body)
    async with asking(server, name) as search:
        error = await refusal(search)
    assert (error.kind, error.retryable) == ("unreadable", False)


async def test_a_large_answer_is_not_read_to_its_end(server: Server) -> None:
    server.give(b" " * 3_000_000)
    async with asking(server) as search:
        error = await refusal(search)
    assert (error.kind, str(error)) == (
        "too_large", "the answer of the search engine is larger than 2 MB"
    )  # fmt: skip


async def test_a_bomb_is_not_unpacked(server: Server) -> None:
    server.give(
        gzip.compress(b" " * 200_000_000, compresslevel=1, mtime=0), 200, "Content-Encoding: gzip"
    )
    async with asking(server) as search:
        tracemalloc.start()
        error = await refusal(search)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert error.kind == "too_large"
    assert peak < 20_000_000  # bytes; unpacked it is ten times that


@pytest.mark.parametrize("encoding", ["gzip", "X-GZIP"])
async def test_a_packed_answer_is_read(encoding: str, server: Server) -> None:
    server.give(gzip.compress(FOUND, mtime=0), 200, f"Content-Encoding: {encoding}")
    async with asking(server) as search:
        assert len(await search.search("q", 5)) == 1


@pytest.mark.parametrize(
    ("encoding", "body", "retryable"),
    [("br", FOUND, False), ("gzip, gzip", FOUND, False), ("gzip", FOUND, False),
     ("gzip", gzip.compress(FOUND, mtime=0)[:-12], True)],
)  # fmt: skip
async def test_what_cannot_be_unpacked_is_told(
    encoding: str, body: bytes, retryable: bool, server: Server
) -> None:
    server.give(body, 200, f"Content-Encoding: {encoding}")
    async with asking(server) as search:
        error = await refusal(search)
    assert (error.kind, error.retryable) == ("unreadable", retryable)


async def test_a_proxy_of_the_environment_is_not_used(
    server: Server, free_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_tcp_port}")
    server.give(FOUND)
    async with asking(server) as search:
        assert len(await search.search("q", 5)) == 1


OUTCOMES = {
    "found": (FOUND, 200), "refused": (THEIRS.encode(), 401), "busy": (THEIRS.encode(), 429),
    "broken": (THEIRS.encode(), 500), "no JSON": (THEIRS.encode(), 200),
    "echo": (f'{{"error": "{KEY} {THEIRS}"}}'.encode(), 200),
}  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("name", ENGINES)
async def test_the_key_is_in_no_log_and_no_error(
    name: str, outcome: str, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)  # every line of every library, as no process of ours would log
    for library in ("httpx", "httpcore"):
        caplog.set_level(1, library)
    server.give(*OUTCOMES[outcome])
    told = []
    with capture_logs() as logs:
        async with asking(server, name) as search:
            try:
                await search.search("post horses", 5)
            except ToolFailed as error:
                told += [str(error), repr(error), "".join(traceback.format_exception(error))]
                assert THEIRS not in told[0]
                assert server.url not in told[0]
                assert "post" not in told[0]
    assert KEY in f"{server.asked[0].target}{server.asked[0].headers}"
    assert any(record.name == "httpx" for record in caplog.records)  # or this shows nothing
    assert KEY not in caplog.text
    assert KEY not in str([vars(record) for record in caplog.records])
    assert KEY not in str(logs)
    assert KEY not in str(told)


async def test_the_key_is_in_no_error_of_a_silent_engine(
    server: Server, free_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    server.hold = True
    for url in (server.url, f"http://127.0.0.1:{free_tcp_port}"):
        caps = SearchCaps(seconds=0.2)
        async with aclosing(WebSearch(ENGINES["serpapi"], url=url, key=KEY, caps=caps)) as search:
            error = await refusal(search)
        cause = error.__context__
        assert cause is not None
        assert KEY not in "".join(traceback.format_exception(error)) + str(cause) + repr(cause)
        assert KEY not in str(getattr(cause, "_request", None) and cause.request.url)
    assert KEY not in caplog.text


async def test_the_key_is_in_no_result(server: Server) -> None:
    pages = [
        {"title": KEY, "url": "https://a.example/"},
        {"title": "b", "url": f"https://b.example/?api_key={KEY}"},
        {"title": "c", "url": "https://c.example/", "content": f"asked with {KEY}."},
        {"title": "d", "url": "https://d.example/"},
    ]
    server.give(json.dumps({"results": pages}).encode())
    async with asking(server) as search:
        hits = await search.search("q", 5)
    assert hits == (SearchHit(title="d", url="https://d.example/", snippet=""),)


async def test_the_logs_of_a_process_do_not_show_what_httpx_asks_for(server: Server) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logs("debug", process="worker-1")
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
        assert not logging.getLogger("httpcore").isEnabledFor(logging.INFO)
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before


@pytest.fixture
def corpus(tmp_path: Path) -> Any:
    corpus = Corpus(tmp_path)
    yield corpus
    corpus.close()


@pytest.mark.parametrize("name", ["corpus", "", " Corpus "])
def test_the_corpus_is_given_as_it_is(name: str, corpus: Corpus) -> None:
    assert search_provider(name, key=None, url=None, corpus=corpus) is corpus


@pytest.mark.parametrize("name", ENGINES)
async def test_an_engine_is_built_by_its_name(name: str, corpus: Corpus, server: Server) -> None:
    server.give((ANSWERS / f"{name}.json").read_bytes())
    search = search_provider(name.upper(), key=f" {KEY} ", url=f"{server.url}/", corpus=corpus)
    assert isinstance(search, WebSearch)
    async with aclosing(search):
        assert await search.search("post horses", 5)
    assert urlsplit(server.asked[0].target).path == SENT[name][1]


async def test_an_engine_below_a_path_is_reached(corpus: Corpus, server: Server) -> None:
    server.give((ANSWERS / "searxng.json").read_bytes())
    search = search_provider("searxng", key=None, url=f"{server.url}/searx/", corpus=corpus)
    assert isinstance(search, WebSearch)
    async with aclosing(search):
        await search.search("q", 5)
    assert server.asked[0].target == "/searx/search?q=q&format=json"
    assert "authorization" not in server.asked[0].headers


async def test_engines_with_an_address_need_none(corpus: Corpus) -> None:
    for name in sorted(ENGINES.keys() - {"searxng"}):
        search = search_provider(name, key=KEY, url="", corpus=corpus)
        assert isinstance(search, WebSearch)
        await search.aclose()


@pytest.mark.parametrize("name", sorted(ENGINES.keys() - {"searxng"}))
@pytest.mark.parametrize("key", [None, "", "  "])
def test_a_missing_key_is_named(name: str, key: str | None, corpus: Corpus) -> None:
    with pytest.raises(ConfigurationError) as raised:
        search_provider(name, key=key, url=None, corpus=corpus)
    assert str(raised.value) == f"POSTHOUSE_SEARCH={name} needs POSTHOUSE_SEARCH_API_KEY"


@pytest.mark.parametrize("key", [f"{KEY}\nx: y", f"{KEY} x", f"{KEY}\0", "ключ" + KEY])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(key: str, corpus: Corpus) -> None:
    with pytest.raises(ConfigurationError, match="POSTHOUSE_SEARCH_API_KEY") as raised:
        search_provider("exa", key=key, url=None, corpus=corpus)
    assert KEY not in str(raised.value)


def test_a_choice_does_not_show_its_key() -> None:
    chosen = chosen_engine(" Exa", key=KEY, url="http://gate/exa/")
    assert chosen is not None
    assert (chosen.engine.name, chosen.url, chosen.key) == ("exa", "http://gate/exa", KEY)
    assert KEY not in repr(chosen)


@pytest.mark.parametrize("url", [None, "", " "])
def test_a_missing_address_is_named(url: str | None, corpus: Corpus) -> None:
    with pytest.raises(ConfigurationError, match=r"POSTHOUSE_SEARCH=searxng.*POSTHOUSE_SEARCH_URL"):
        search_provider("searxng", key=None, url=url, corpus=corpus)


@pytest.mark.parametrize(
    "url",
    ["ftp://a/", "a.example", "http://", "http:///x", "http://[::1", "http://a:99999", "http://a b/",
     "http://a/?q=1", "http://a/#x", "http://user:pass@a/", "http://a\n.b/", "http://\ud800/",
     "file:///x", "https://" + "a" * 70_000],
    ids=lambda url: url.encode("ascii", "replace").decode()[:20],
)  # fmt: skip
@pytest.mark.parametrize("name", ["searxng", "brave"])
def test_what_is_no_address_is_refused_in_one_line(name: str, url: str, corpus: Corpus) -> None:
    with pytest.raises(ConfigurationError, match="POSTHOUSE_SEARCH_URL") as raised:
        search_provider(name, key=KEY, url=url, corpus=corpus)
    assert "\n" not in str(raised.value)
    assert "pass" not in str(raised.value)


@pytest.mark.parametrize("name", ["google", "brave.py", "x" * 500, "a\nb"])
def test_an_unknown_name_is_told_what_there_is(name: str, corpus: Corpus) -> None:
    with pytest.raises(ConfigurationError, match="POSTHOUSE_SEARCH") as raised:
        search_provider(name, key=None, url=None, corpus=corpus)
    assert "corpus, brave, exa, searxng, serpapi, tavily" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200
