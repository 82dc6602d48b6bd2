import asyncio
import gzip
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.fetch import MAX_REDIRECTS, Caps, Names, WebReader
from posthouse.tools.guard import Ip
from posthouse.tools.model import PageReader

ARTICLE = (
    "<html><head><title>Hörses</title></head><body><article><h1>Horses</h1>"
    + "<p>A courier changed horses at every posthouse and rode on.</p>" * 8
    + "</article></body></html>"
)
# What a resolver, a browser or a careless parser takes for this machine.
SPELLINGS = [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "2130706433", "0",
    "0x7f000001", "0x7F.0.0.1", "0x7f.1", "017700000001", "0177.0.0.1", "0177.1", "127.0.0.1.",
    "0x0", "0.0.0.0", "127.000.000.001", "127.8.8.8", "①②⑦.⓪.⓪.①", "127。0。0。1",
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[::ffff:0:127.0.0.1]", "[::1%25lo]", "%31%32%37.0.0.1", "127.0.0.1%00",
    "x@127.0.0.1", "127.0.0.1\\@example.org",
]  # fmt: skip
SITE = ip_address("127.0.0.2")


def _any(_: Ip) -> bool:
    return True


def _only_site(ip: Ip) -> bool:
    return ip == SITE


class Answers:
    """A resolver that answers from a table, and counts."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> tuple[Ip, ...]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return tuple(ip_address(ip) for ip in answer.split())


@pytest.fixture
async def reader(site: Any) -> AsyncIterator[WebReader]:
    reader = WebReader(allow=_any, ports=frozenset({site.port}))
    yield reader
    await reader.aclose()


@asynccontextmanager
async def _reader(site: Any, **options: Any) -> AsyncIterator[WebReader]:
    reader = WebReader(ports=frozenset({site.port}), **options)
    try:
        yield reader
    finally:
        await reader.aclose()


async def _refusal(reader: WebReader, url: str) -> ToolFailed:
    with pytest.raises(ToolFailed) as raised:
        await reader.read(url)
    return raised.value


async def test_a_page_is_read(site: Any, reader: WebReader) -> None:
    site.page("/a?b=%C3%A4", ARTICLE.encode())
    pages: PageReader = reader
    page = await pages.read(site.url("/a?b=ä#part", "localhost"))
    assert page.title == "Hörses"
    assert "A courier changed horses" in page.text
    assert page.address == site.url("/a?b=%C3%A4", "localhost")
    (request,) = site.requests
    assert request[1]["host"] == f"localhost:{site.port}"
    assert request[1]["accept-encoding"] == "gzip, deflate"


@pytest.mark.guarantee("G12")
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_this_machine_is_connected_to(spelling: str, site: Any) -> None:
    async with _reader(site) as reader:
        error = await _refusal(reader, site.url("/", spelling))
    # A name that the resolver here does not take for an address is a site that does not exist.
    assert error.kind in ("forbidden_address", "http_error")
    assert site.connections == 0


async def test_the_canary_would_have_heard_them(site: Any, reader: WebReader) -> None:
    site.page("/", ARTICLE.encode())
    await reader.read(site.url("/", "2130706433"))
    assert site.connections == 1


@pytest.mark.guarantee("G12")
@pytest.mark.parametrize("spelling", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]"])
async def test_a_redirect_is_checked_like_the_first_address(spelling: str, site: Any) -> None:
    canary, door = site, type(site)()
    server = await asyncio.start_server(door.serve, str(SITE), site.port)
    door.page("/", b"", status=302, headers=f"Location: {canary.url('/', spelling)}\r\n")
    async with server, _reader(site, allow=_only_site) as reader:
        error = await _refusal(reader, site.url("/", str(SITE)))
        server.close()
    assert error.kind == "forbidden_address"
    assert (door.connections, canary.connections) == (1, 0)


async def test_one_private_answer_among_public_ones_is_enough_to_refuse(site: Any) -> None:
    async with _reader(site, resolve=Answers("1.1.1.1 127.0.0.1")) as reader:
        error = await _refusal(reader, site.url("/", "rebind.example"))
    assert error.kind == "forbidden_address"
    assert site.connections == 0


async def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(site: Any) -> None:
    names = Answers("127.0.0.2", "127.0.0.1")
    async with _reader(site, allow=_only_site, resolve=names) as reader:
        error = await _refusal(reader, site.url("/", "rebind.example"))
        assert "could not be reached" in str(error)  # nobody listens at the checked address
        again = await _refusal(reader, site.url("/", "rebind.example"))
    assert again.kind == "forbidden_address"
    assert names.asked == 2
    assert site.connections == 0


@pytest.mark.guarantee("G12")
async def test_the_connection_itself_is_checked_too(site: Any) -> None:
    looks: list[Ip] = []

    def only_once(ip: Ip) -> bool:
        looks.append(ip)
        return len(looks) == 1

    async with _reader(site, allow=only_once) as reader:
        error = await _refusal(reader, site.url("/"))
    assert error.kind == "forbidden_address"
    assert len(looks) == 2
    assert site.connections == 0


async def test_the_next_address_is_tried_when_one_does_not_answer(site: Any) -> None:
    site.page("/", ARTICLE.encode())
    async with _reader(site, allow=_any, resolve=Answers("127.0.0.3 127.0.0.1")) as reader:
        page = await reader.read(site.url("/", "two.example"))
    assert page.address == site.url("/", "two.example")


async def test_redirects_are_followed_three_times(site: Any, reader: WebReader) -> None:
    site.page("/3", ARTICLE.encode())
    for step in range(MAX_REDIRECTS):
        site.page(f"/{step}", b"", status=301, headers=f"Location: {step + 1}\r\n")
    assert (await reader.read(site.url("/0"))).address == site.url("/3")
    site.page("/3", b"", status=307, headers="Location: /3\r\n")
    error = await _refusal(reader, site.url("/0"))
    assert error.kind == "http_error"
    assert "redirects more than 3 times" in str(error)


async def test_runs_share_neither_cookies_nor_connections(site: Any, reader: WebReader) -> None:
    site.page("/", ARTICLE.encode(), headers="Set-Cookie: run=1; Path=/\r\n")
    for _ in range(2):
        await reader.read(site.url("/"))
    assert "cookie" not in site.requests[1][1]
    assert site.connections == 2


async def test_a_proxy_of_the_environment_is_not_used(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.9:{site.port}")
    site.page("/", ARTICLE.encode())
    async with _reader(site, allow=_any) as reader:
        await reader.read(site.url("/"))
    assert site.connections == 1


@pytest.mark.parametrize(
    ("status", "retryable"), [(404, False), (403, False), (429, True), (503, True), (304, False)]
)
async def test_a_status_is_told(status: int, retryable: bool, site: Any, reader: WebReader) -> None:
    site.page("/", b"", status=status)
    error = await _refusal(reader, site.url("/"))
    assert (error.kind, error.status_code, error.retryable) == ("http_error", status, retryable)


async def test_what_cannot_be_reached_is_told(site: Any, free_tcp_port: int) -> None:
    async with _reader(site, allow=_any, resolve=Answers("")) as reader:
        assert "no site named" in str(await _refusal(reader, site.url("/", "nowhere.example")))
    reader = WebReader(allow=_any, ports=frozenset({free_tcp_port}))
    error = await _refusal(reader, f"http://127.0.0.1:{free_tcp_port}/")
    await reader.aclose()
    assert (error.kind, error.retryable) == ("http_error", True)
    assert "could not be reached" in str(error)


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n",
     b"HTTP/1.1 200 X\r\nContent-Length: 100\r\nContent-Type: text/plain\r\n\r\nx",
     b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
     b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n"],
)  # fmt: skip
async def test_a_broken_answer_is_told(answer: bytes, site: Any, reader: WebReader) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    site.answers["/"] = send
    assert (await _refusal(reader, site.url("/"))).kind == "http_error"


@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nabc"],
)
async def test_a_slow_site_is_left(beginning: bytes, site: Any) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        await asyncio.Event().wait()

    site.answers["/"] = stall
    async with _reader(site, allow=_any, caps=Caps(seconds=0.2)) as reader:
        error = await _refusal(reader, site.url("/"))
    assert (error.kind, error.retryable) == ("timeout", True)


async def test_a_resolver_that_hangs_is_left(site: Any) -> None:
    async def hang(host: str, port: int) -> tuple[Ip, ...]:
        await asyncio.Event().wait()
        return ()

    async with _reader(site, allow=_any, resolve=hang, caps=Caps(seconds=0.1)) as reader:
        assert (await _refusal(reader, site.url("/"))).kind == "timeout"


async def test_a_page_above_the_cap_is_refused(site: Any) -> None:
    site.page("/fits", b"x" * 1000, "text/plain")
    site.page("/large", b"x" * 1001, "text/plain")
    async with _reader(site, allow=_any, caps=Caps(bytes=1000)) as reader:
        assert len((await reader.read(site.url("/fits"))).text) == 1000
        assert (await _refusal(reader, site.url("/large"))).kind == "too_large"


async def test_an_endless_page_is_refused(site: Any, reader: WebReader) -> None:
    async def pour(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    site.answers["/"] = pour
    assert (await _refusal(reader, site.url("/"))).kind == "too_large"


async def test_a_bomb_is_not_unpacked(site: Any, reader: WebReader) -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(b"\0" * 1_000_000) for _ in range(200)) + bomb.flush()
    site.page("/", packed, "text/plain", headers="Content-Encoding: gzip\r\n")
    tracemalloc.start()
    error = await _refusal(reader, site.url("/"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.kind == "too_large"
    assert peak < 20_000_000  # bytes; unpacked it is ten times that


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress),
     ("deflate", _raw_deflate), ("identity", bytes), ("", bytes)],
)  # fmt: skip
async def test_packed_pages_are_read(
    encoding: str, pack: Any, site: Any, reader: WebReader
) -> None:
    site.page(
        "/", pack(b"of horses " * 100), "text/plain", headers=f"Content-Encoding: {encoding}\r\n"
    )
    assert (await reader.read(site.url("/"))).text == "of horses " * 100


@pytest.mark.parametrize(
    ("encoding", "body", "kind"),
    [
        ("br", b"x", "unsupported"),
        ("zstd", b"x", "unsupported"),
        ("gzip, gzip", b"x", "unsupported"),
        ("gzip", b"not packed", "unreadable"),
        ("gzip", gzip.compress(b"of horses" * 100, mtime=0)[:-20], "unreadable"),
        ("deflate", b"not packed", "unreadable"),
    ],
)
async def test_what_cannot_be_unpacked_is_told(
    encoding: str, body: bytes, kind: str, site: Any, reader: WebReader
) -> None:
    site.page("/", body, "text/plain", headers=f"Content-Encoding: {encoding}\r\n")
    assert (await _refusal(reader, site.url("/"))).kind == kind


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/markdown; charset=utf-8", "application/json", "application/xml",
     "TEXT/CSV", "application/atom+xml", "application/ld+json"],
)  # fmt: skip
async def test_text_of_these_kinds_is_read_as_it_is(
    kind: str, site: Any, reader: WebReader
) -> None:
    site.page("/", "<a>größe</a>".encode(), kind)
    page = await reader.read(site.url("/"))
    assert (page.title, page.text) == ("127.0.0.1", "<a>größe</a>")


@pytest.mark.parametrize(
    "kind", ["image/png", "application/pdf", "application/octet-stream", "", "text", "video/mp4"]
)
async def test_other_kinds_are_unsupported(kind: str, site: Any, reader: WebReader) -> None:
    site.page("/", b"x", kind)
    assert (await _refusal(reader, site.url("/"))).kind == "unsupported"


async def test_the_declared_charset_counts(site: Any, reader: WebReader) -> None:
    site.page("/", "größe".encode("latin-1"), 'text/plain; Charset="ISO-8859-1"')
    assert (await reader.read(site.url("/"))).text == "größe"


async def test_a_page_without_text_is_unreadable(site: Any, reader: WebReader) -> None:
    site.page("/", b"<html><body><script>x()</script></body></html>")
    assert (await _refusal(reader, site.url("/"))).kind == "unreadable"


async def test_the_system_resolver_gives_every_address_once() -> None:
    names = Names()
    assert ip_address("127.0.0.1") in await names.resolve("localhost", 80)
    assert await names.resolve("127.1", 80) == (ip_address("127.0.0.1"),)
    with pytest.raises(socket.gaierror):
        await names.resolve("no such host", 80)
    names.close()


async def test_names_and_texts_wait_for_no_other_work_in_threads(site: Any) -> None:
    others = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(others)
    go_on = Event()
    others.submit(go_on.wait)  # whatever takes a thread for long
    site.page("/", ARTICLE.encode())
    async with _reader(site, allow=_any) as reader:
        assert (await reader.read(site.url("/", "localhost"))).title == "Hörses"
    go_on.set()
    others.shutdown()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("1.1.1.1 fe80::1%1", "forbidden_address"), ("2606:4700::1%1", "forbidden_address"),
     ("", "http_error"), (" ".join(f"1.1.{n // 250}.{n % 250}" for n in range(10_000)), "http_error")],
)  # fmt: skip
async def test_odd_answers_of_a_resolver(answer: str, kind: str, site: Any) -> None:
    async with _reader(site, resolve=Answers(answer)) as reader:
        assert (await _refusal(reader, site.url("/", "odd.example"))).kind == kind
    assert site.connections == 0


async def test_a_resolver_that_breaks_is_a_site_that_is_not_there(site: Any) -> None:
    async def broken(host: str, port: int) -> tuple[Ip, ...]:
        raise ValueError("not an address")

    async with _reader(site, resolve=broken) as reader:
        assert "no site named" in str(await _refusal(reader, site.url("/", "odd.example")))


@pytest.mark.parametrize(
    ("location", "kind"),
    [(b"http://b\xc3\xbccher.example/", "http_error"), (b"http://lo\xc5\xbfacal.example/", "http_error"),
     (b"http://\xff\xfe/", "http_error"), (b"http://xn--0/", "http_error"),
     (b"http://0177.0.0.1/", "forbidden_address"), (b"http://[::1/", "forbidden_address"),
     (b"/a\x01b", "forbidden_address"), (b"/a\rb", "http_error"), (b"/a b", "forbidden_address"),
     (b"/" + b"a" * 30_000, "forbidden_address"), (b"http://:pw@", "forbidden_address"),
     (b"/\r\n folded", "forbidden_address"), (b"/\r\nLocation: http://127.0.0.1/", "forbidden_address"),
     (b"/\r\n\r\nHTTP/1.1 200 OK", "forbidden_address"), (b"", "http_error"), (b"?", "forbidden_address"),
     (b"file:///etc/passwd", "forbidden_address"), (b"//", "forbidden_address"),
     (b"http://\xf0\x9f\x92\xa9/", "http_error")],
)  # fmt: skip
async def test_an_odd_redirect_is_told(location: bytes, kind: str, site: Any) -> None:
    async def nobody(host: str, port: int) -> tuple[Ip, ...]:
        return (ip_address("127.0.0.1"),) if host in ("127.0.0.1", "0177.0.0.1") else ()

    head = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: "
    site.answers["/from"] = head + location + b"\r\n\r\n"
    ports = frozenset({site.port, 80})
    reader = WebReader(allow=lambda ip: site.connections == 0, ports=ports, resolve=nobody)
    # The first look and the check at its connection are let through, what comes after is not.
    error = await _refusal(reader, site.url("/from"))
    await reader.aclose()
    assert error.kind == kind
    assert site.connections == 1


async def test_a_page_that_redirects_to_itself_is_left(site: Any, reader: WebReader) -> None:
    site.page("/", b"", status=302, headers="Location: /\r\n")
    assert "redirects more than" in str(await _refusal(reader, site.url("/")))
    assert site.connections == MAX_REDIRECTS + 1


async def test_a_site_that_drips_is_left(site: Any) -> None:
    left = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/plain\r\n\r\n")
        try:
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.01)
        finally:
            left.set()

    site.answers["/"] = drip
    async with _reader(site, allow=_any, caps=Caps(seconds=0.3)) as reader:
        assert (await _refusal(reader, site.url("/"))).kind == "timeout"
        await left.wait()


async def test_no_password_of_the_environment_is_sent(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    site.page("/", ARTICLE.encode())
    async with _reader(site, allow=_any) as reader:
        await reader.read(site.url("/"))
    assert "authorization" not in site.requests[0][1]


async def test_what_is_asked_for_is_what_was_checked(site: Any, reader: WebReader) -> None:
    for path in ("//127.0.0.1/x", "/a%2f..%2fb", "/%%", "/a;b=c?d=/../e", "/a?b?c", "/@x:1"):
        site.page(path, ARTICLE.encode())
        assert (await reader.read(site.url(path))).address == site.url(path)
        assert site.requests[-1][0] == path


async def test_a_page_that_takes_too_long_to_be_read_is_left(site: Any) -> None:
    site.page("/", b"<p>some text here " * 20_000)
    async with _reader(site, allow=_any, caps=Caps(text_seconds=0.01)) as reader:
        error = await _refusal(reader, site.url("/"))
    assert (error.kind, error.retryable) == ("timeout", True)


async def test_bytes_that_break_a_codec_are_read_all_the_same(site: Any, reader: WebReader) -> None:
    site.page("/", b"of \x1b.J\x1bN\xd2 horses", "text/plain; charset=iso2022_jp_2")
    assert "horses" in (await reader.read(site.url("/"))).text
