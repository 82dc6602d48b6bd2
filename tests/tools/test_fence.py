"""Nothing that a page, a name or a redirect can say leads a tool to this machine."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx
import pytest

from posthouse.errors import ToolFailed
from posthouse.tools.fetch import Caps, WebReader
from posthouse.tools.guard import Ip, WebAddress, check_url, is_public

# What a resolver, a browser or a careless parser takes for an address of this machine or its
# neighbours: {port} is the canary's.
FORMS = [
    # plain
    "http://127.0.0.1:{port}/", "http://127.8.8.8:{port}/", "http://127.255.255.254:{port}/",
    "http://localhost:{port}/", "HTTP://LOCALHOST:{port}/", "hTTp://LocalHost.:{port}/",
    "http://localhost:{port}?@example.org/", "http://localhost:{port}#@example.org/",
    # numbers in other bases, short forms, padding
    "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://0X7F000001:{port}/",
    "http://017700000001:{port}/", "http://0177.0.0.1:{port}/", "http://0177.1:{port}/",
    "http://0x7f.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://127.1:{port}/",
    "http://127.0.1:{port}/", "http://127.000.000.001:{port}/", "http://127.0x0.0.01:{port}/",
    "http://0:{port}/", "http://0x0:{port}/", "http://00000000:{port}/", "http://0.0.0.0:{port}/",
    "http://4294967296:{port}/", "http://383.0.0.1:{port}/", "http://6425673729:{port}/",
    "http://127.0.0.1.:{port}/", "http://127.0.0.1..:{port}/", "http://2130706433.:{port}/",
    # digits and dots of other scripts, letters that fold, invisible ones
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11:{port}/",
    "http://127\u30020\u30020\u30021:{port}/", "http://127\uff0e0\uff0e0\uff0e1:{port}/",
    "http://127\uff610\uff610\uff611:{port}/", "http://\u0661\u0662\u0667.0.0.1:{port}/",
    "http://\U0001d7d9\U0001d7da\U0001d7df.0.0.1:{port}/", "http://127.0.0\u200b.1:{port}/",
    "http://loc\u00adalhost:{port}/", "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:{port}/",
    "http://lo\u017facalhost:{port}/", "http://localho\u017ft:{port}/", "http://LOCALHO\u1e9eT:{port}/",
    "http://xn--127-:{port}/", "http://xn--:{port}/", "http://\ufeff127.0.0.1:{port}/",
    # user names, backslashes, white space, control characters
    "http://example.org@127.0.0.1:{port}/", "http://example.org:80@127.0.0.1:{port}/",
    "http://@127.0.0.1:{port}/", "http://example.org%40127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.org/", "http://example.org\\@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\", "http:/\\127.0.0.1:{port}/", "http://127.0.0.1\\:{port}/",
    "http://127.0.\t0.1:{port}/", "ht\ntp://127.0.0.1:{port}/", "http://127.0.0.1\r\n:{port}/",
    "\x00http://127.0.0.1:{port}/", "http://127.0.0.1\x00.example.org:{port}/",
    " \u3000http://127.0.0.1:{port}/ ", "http://127.0.0.1 :{port}/", "http://127.0.0.1\x7f:{port}/",
    # slashes, missing parts, odd ports
    "http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/",
    "http:////127.0.0.1:{port}/", "//127.0.0.1:{port}/", "127.0.0.1:{port}", "http://:{port}/",
    "http://127.0.0.1:0{port}/", "http://127.0.0.1:+{port}/", "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:80:{port}/", "http://127.0.0.1:{port}&@example.org/",
    "http://example.org:{port}@127.0.0.1:{port}/", "http://127.0.0.1;example.org:{port}/",
    "http://127.0.0.1,example.org:{port}/",
    # percent signs
    "http://%31%32%37.0.0.1:{port}/", "http://127%2e0%2e0%2e1:{port}/", "http://%6cocalhost:{port}/",
    "http://127.0.0.1%00:{port}/", "http://127.0.0.1%2f.example.org:{port}/", "http://%5b::1%5d:{port}/",
    # IPv6, and IPv4 wrapped in it
    "http://[::1]:{port}/", "http://[0:0:0:0:0:0:0:1]:{port}/", "http://[0000::0001]:{port}/",
    "http://[::]:{port}/", "http://[0::0]:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::FFFF:7F00:1]:{port}/", "http://[::ffff:0.0.0.0]:{port}/", "http://[::127.0.0.1]:{port}/",
    "http://[::7f00:1]:{port}/", "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::127.0.0.1]:{port}/", "http://[2002:7f00:1::]:{port}/",
    "http://[2002:7f00:1::1]:{port}/", "http://[2001:0:7f00:1::]:{port}/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}/", "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[2606:4700::5efe:127.0.0.1]:{port}/", "http://[fe80::5efe:127.0.0.1]:{port}/",
    "http://[2002:808:808::5efe:127.0.0.1]:{port}/", "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/", "http://[::1%25lo]:{port}/", "http://[::1%lo]:{port}/",
    "http://[::1%251]:{port}/", "http://[::1]example.org:{port}/", "http://[::1]@example.org:{port}/",
    "http://[[::1]]:{port}/", "http://[::1:{port}/", "http://::1:{port}/", "http://[127.0.0.1]:{port}/",
    "http://[v1.::1]:{port}/", "http://[fc00::1]:{port}/", "http://[fec0::1]:{port}/",
    "http://[ff02::1]:{port}/", "http://[100::1]:{port}/", "http://[2001:db8::1]:{port}/",
    # what clouds keep for their machines
    "http://169.254.169.254:{port}/", "http://2852039166:{port}/", "http://0xa9fea9fe:{port}/",
    "http://169.254.43518:{port}/", "http://[::ffff:169.254.169.254]:{port}/",
    "http://[fd00:ec2::254]:{port}/", "http://100.100.100.200:{port}/", "http://192.0.0.192:{port}/",
    "http://168.63.129.16:{port}/", "http://169.254.170.2:{port}/",
    # private and reserved
    "http://10.0.0.1:{port}/", "http://172.16.0.1:{port}/", "http://192.168.0.1:{port}/",
    "http://100.64.0.1:{port}/", "http://198.18.0.1:{port}/", "http://192.88.99.1:{port}/",
    "http://224.0.0.1:{port}/", "http://240.0.0.1:{port}/", "http://255.255.255.255:{port}/",
    # names that a table (see TABLE) has on this machine
    "http://localhost.localdomain:{port}/", "http://ip6-localhost:{port}/", "http://a.localhost:{port}/",
    "http://metadata.google.internal:{port}/", "http://metadata:{port}/", "http://db.internal:{port}/",
    "http://127.0.0.1.nip.example:{port}/", "http://7f000001.rebind.example:{port}/",
    "http://v6.example:{port}/", "http://mapped.example:{port}/", "http://nat64.example:{port}/",
    "http://zone.example:{port}/", "http://mixed.example:{port}/", "http://mixed6.example:{port}/",
    "http://last.example:{port}/", "http://zero.example:{port}/", "http://b\u00fccher.example:{port}/",
    # other schemes
    "https://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/", "file:///etc/passwd",
    "file://127.0.0.1:{port}/x", "gopher://127.0.0.1:{port}/_GET", "dict://127.0.0.1:{port}/x",
    "ws://127.0.0.1:{port}/", "data:text/html,x", "javascript:fetch('http://127.0.0.1:{port}')",
    "ldap://127.0.0.1:{port}/", "redis://127.0.0.1:{port}/0", "jar:http://127.0.0.1:{port}/!/",
    "http+unix://%2frun%2fx.sock/", "view-source:http://127.0.0.1:{port}/", "url:http://127.0.0.1:{port}/",
    "http\uff1a//127.0.0.1:{port}/", "blob:http://127.0.0.1:{port}/",
    # long ones
    "http://127.0.0.1:{port}/" + "a" * 3000, "http://" + "0" * 900 + "127.0.0.1:{port}/",
    "http://" + "a." * 500 + "example:{port}/", "http://" + "x" * 1500 + "@127.0.0.1:{port}/",
]  # fmt: skip
TABLE = {
    "127.0.0.1.nip.example": "127.0.0.1",
    "a.localhost": "127.0.0.1 ::1",
    "db.internal": "10.0.0.5",
    "ip6-localhost": "::1",
    "last.example": "1.1.1.1 8.8.8.8 2606:4700::1111 127.0.0.1",
    "localhost.localdomain": "127.0.0.1",
    "mapped.example": "::ffff:127.0.0.1",
    "metadata": "169.254.169.254",
    "metadata.google.internal": "169.254.169.254",
    "mixed.example": "127.0.0.1 1.1.1.1",
    "mixed6.example": "1.1.1.1 ::1",
    "nat64.example": "64:ff9b::7f00:1",
    "v6.example": "::1",
    "xn--bcher-kva.example": "127.0.0.1",
    "zero.example": "0.0.0.0",
    "zone.example": "::1%1",
    "7f000001.rebind.example": "127.0.0.1",
}
DOOR = ip_address("127.0.0.2")
LOOK_SECONDS = 0.5


def allowed(ip: Ip) -> bool:
    """The public internet and the one server that redirects."""
    return is_public(ip) or ip == DOOR


@dataclass
class Canary:
    """Listens on 127.0.0.1, ::1 and every other address of this machine, and counts who comes."""

    port: int
    heard: int = 0
    to: str = ""
    sent: list[bytes] = field(default_factory=list)

    async def sing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard += 1
        writer.transport.abort()

    async def redirect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sent.append(await reader.readuntil(b"\r\n\r\n"))
        location = self.to.encode("utf-8", "replace")
        writer.write(b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")
        await writer.drain()
        writer.close()


def _listeners() -> tuple[int, list[socket.socket], socket.socket]:
    """A port with the canary's sockets, and at DOOR the one of the server that is allowed."""
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    canary = [first, socket.create_server(("127.8.8.8", port))]
    if socket.has_ipv6:
        canary.append(socket.create_server(("::1", port), family=socket.AF_INET6))
    return port, canary, socket.create_server((str(DOOR), port))


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    port, sockets, door = _listeners()
    canary = Canary(port)
    servers = [await asyncio.start_server(canary.sing, sock=found) for found in sockets]
    servers.append(await asyncio.start_server(canary.redirect, sock=door))
    yield canary
    for server in servers:
        server.close()


@dataclass
class Names:
    """A resolver: the table's names, names that change with every look, else this machine's own."""

    changing: dict[str, list[str]] = field(default_factory=dict)
    looks: Counter[str] = field(default_factory=Counter)

    async def __call__(self, host: str, port: int) -> tuple[Ip, ...]:
        self.looks[host] += 1
        if answers := self.changing.get(host):
            answer = answers[min(self.looks[host], len(answers)) - 1]
        elif host in TABLE:
            answer = TABLE[host]
        else:
            # Numbers of any form are turned into addresses here; no server is asked for a name.
            found = socket.getaddrinfo(host, port, flags=_flags(host), type=socket.SOCK_STREAM)
            answer = " ".join(str(one[4][0]) for one in found)
        return tuple(ip_address(ip) for ip in answer.split())


def _flags(host: str) -> int:
    return 0 if host == "localhost" else socket.AI_NUMERICHOST


@asynccontextmanager
async def reading(
    canary: Canary,
    names: Names,
    allow: Callable[[Ip], bool] = allowed,
    ports: tuple[int, ...] = (80, 443),
) -> AsyncIterator[WebReader]:
    caps = Caps(seconds=LOOK_SECONDS, connect_seconds=LOOK_SECONDS)
    reader = WebReader(
        allow=allow, ports=frozenset({canary.port, *ports}), resolve=names, caps=caps
    )
    try:
        yield reader
    finally:
        await reader.aclose()


async def _refused(reader: WebReader, url: str) -> str:
    with pytest.raises(ToolFailed) as raised:
        await reader.read(url)
    return raised.value.kind


def test_the_table_is_long_enough() -> None:
    assert len(set(FORMS)) == len(FORMS) >= 60


@pytest.mark.guarantee("G12")
async def test_no_form_of_an_address_reaches_this_machine(canary: Canary) -> None:
    async with reading(canary, Names(), is_public) as reader:
        for form in FORMS:
            kind = await _refused(reader, form.replace("{port}", str(canary.port)))
            assert kind in ("forbidden_address", "http_error"), form
            assert canary.heard == 0, form
    assert canary.sent == []


@pytest.mark.guarantee("G12")
async def test_no_redirect_reaches_this_machine(canary: Canary) -> None:
    async with reading(canary, Names()) as reader:
        for number, form in enumerate(FORMS, 1):
            canary.to = form.replace("{port}", str(canary.port))
            # Some of them are no header; the door is asked all the same, and nobody else.
            kind = await _refused(reader, f"http://{DOOR}:{canary.port}/{number}")
            assert kind in ("forbidden_address", "http_error"), form
            assert canary.heard == 0, form
            assert len(canary.sent) >= number, form


# A public address for a look, then one of this machine; nobody answers at the public ones here.
REBINDING = [
    ["192.0.2.1", "127.0.0.1"], ["127.0.0.1", "1.1.1.1"], ["{door}", "127.0.0.1"],
    ["{door}", "::1"], ["{door}", "{door} 127.0.0.1"], ["{door}", "127.0.0.1 {door}"],
    ["{door}", "::ffff:127.0.0.1"], ["{door}", "0.0.0.0"], ["{door}", "::"],
    ["{door}", "64:ff9b::7f00:1"], ["{door}", "169.254.169.254"], ["{door}", "{door}", "127.0.0.1"],
    ["{door}", "{door}", "{door}", "::1"], ["{door} 127.0.0.1"], ["1.1.1.1 127.0.0.1"],
    ["127.0.0.1 1.1.1.1"], ["{door} ::1"], ["1.1.1.1 8.8.8.8 ::1%1"], ["{door}", "127.8.8.8"],
]  # fmt: skip


@pytest.mark.guarantee("G12")
@pytest.mark.parametrize("answers", REBINDING)
async def test_no_changing_name_reaches_this_machine(answers: list[str], canary: Canary) -> None:
    told = [answer.replace("{door}", str(DOOR)) for answer in answers]
    names = Names({"rebind.example": told})
    async with reading(canary, names) as reader:
        # Relative, the same again, and in full: each hop looks the name up anew.
        for location in ("/again", "//rebind.example:{port}/", "http://rebind.example:{port}/x"):
            canary.to = location.replace("{port}", str(canary.port))
            names.looks.clear()
            before = len(canary.sent)
            await _refused(reader, f"http://rebind.example:{canary.port}/")
            assert canary.heard == 0
            assert names.looks["rebind.example"] <= len(canary.sent) - before + 1


@pytest.mark.guarantee("G12")
async def test_every_form_behind_a_name_that_changes_between_hops(canary: Canary) -> None:
    """The first look at each name is the allowed server's address, every later one the real one's."""
    for name, real in TABLE.items():
        names = Names({name: [str(DOOR), real]})
        canary.to = f"http://{name}:{canary.port}/second"
        async with reading(canary, names) as reader:
            kind = await _refused(reader, canary.to)
        assert (kind, canary.heard, names.looks[name]) == ("forbidden_address", 0, 2), name


async def test_the_canary_hears_whoever_is_let_through(canary: Canary) -> None:
    """With a guard that allows everything, most of the same forms arrive: the fence is what stops them."""
    async with reading(canary, Names(), lambda ip: ip.is_loopback) as reader:
        for host in (
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "\uff11\uff12\uff17.1",
            "[::1]",
            "localhost",
        ):
            before = canary.heard
            assert await _refused(reader, f"http://{host}:{canary.port}/") == "http_error"
            assert canary.heard > before, host
        canary.heard, canary.to = 0, f"http://127.0.0.1:{canary.port}/"
        await _refused(reader, f"http://{DOOR}:{canary.port}/")
        assert canary.heard == 1


PIECES = [
    "http://", "https://", "HTTP://", "http:/", "http:", "//", "\\\\", "ftp://", "file:///", "", " ",
    "127.0.0.1", "10.0.0.1", "169.254.169.254", "1.1.1.1", "0x7f.1", "2130706433", "0177.1", "localhost",
    "example.org", "a.b-c_d.example", "b\u00fccher.example", "xn--bcher-kva", "[::1]", "[::ffff:127.0.0.1]",
    "[2606:4700::1111]", "[2002:7f00:1::]", "[fe80::1%25lo]", "[", "]", "::1", "%31", "%2e", "%00", "%",
    ":80", ":443", ":080", ":22", ":", ":\u0668\u0660", "@", "user:pw@", "#", "?", "/", "\\", ";", ",", "&", "=",
    ".", "..", "\u3002", "\uff0e", "\uff61", "\u2460", "\uff11", "\u0661", "\u00ad", "\u200b", "\u017f", "\u1e9e",
    "\u2100", "\u2044", "\ufe55", "\uff03", "\uff20", "\t", "\n", "\r\n", "\0", "\x7f", "\ud800", "\ufeff",
    "-", "_", "*", "$", "a", "a" * 64, "a" * 300, "path/../x", "?q=%zz", "#f@127.0.0.1", "\U0001f600",
]  # fmt: skip
ORDINARY = [
    "http://{host}/{path}", "https://{host}:443/{path}", "http://{host}:80", "https://{host}/?{path}",
    "http://{host}/{path}#{path}", "HTTPS://{host}/",
]  # fmt: skip


def _generated(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    urls = []
    for _ in range(count):
        some = draw.choices(PIECES, k=draw.randint(1, 7))
        match draw.randrange(4):
            case 0:
                url = "".join(some)
            case 1:
                url = draw.choice(["http://", "https://"]) + "".join(some)
            case 2:
                host = draw.choice([str(_any_ip(draw)), "".join(draw.choices("abc019.-_", k=8))])
                host = f"[{host}]" if ":" in host else host
                path = "".join(draw.choices(PIECES, k=2))
                url = draw.choice(ORDINARY).format(host=host, path=path)
            case _:
                url = list(f"http://{draw.choice(PIECES)}:80/" + some[0])
                url.insert(draw.randrange(len(url)), chr(draw.randrange(0x3000)))
                url = "".join(url)
        urls.append(url)
    return urls


def _any_ip(draw: random.Random) -> Ip:
    wrap = draw.choice(["{}", "::ffff:{}", "64:ff9b::{}", "::{}", "2606:4700::5efe:{}", "6"])
    v4 = ip_address(draw.choice([draw.getrandbits(32), 0x7F000001, 0x0A000001, 0x08080808]))
    if wrap == "6":
        return ip_address(draw.getrandbits(128) | 1 << 125)
    return ip_address(wrap.format(v4))


def _literal(host: str) -> Ip | None:
    """The address that the system takes the host for without asking anybody, or None."""
    try:
        found = socket.getaddrinfo(host, 80, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return ip_address(found[0][4][0])


def _assert_read_alike(address: WebAddress) -> None:
    """The standard library, httpx and the guard itself take the same parts from what was accepted."""
    text = str(address)
    parts = urlsplit(text)
    assert (parts.scheme, parts.hostname) == (address.scheme, address.host)
    assert (parts.username, parts.password, parts.fragment) == (None, None, "")
    default = {"http": 80, "https": 443}[address.scheme]
    assert (parts.port or default) == address.port
    with suppress(httpx.InvalidURL):  # it refuses some forms of numbers
        url = httpx.URL(text)
        assert (url.scheme, url.raw_host, url.userinfo) == (
            address.scheme,
            address.host.encode(),
            b"",
        )
        assert (url.port or default) == address.port
    assert check_url(text) == address


@pytest.mark.guarantee("G12")
def test_twenty_thousand_addresses_are_read_one_way_only() -> None:
    accepted, literals = 0, Counter[bool]()
    for url in _generated(20_000, seed=20_000):
        address = _checked(url)
        if address is None:
            continue
        accepted += 1
        _assert_read_alike(address)
        if (ip := _literal(address.host)) is not None:
            literals[is_public(ip)] += 1
            assert not is_public(ip) or _is_plainly_public(ip), url
    assert accepted > 2_000
    assert min(literals[True], literals[False]) > 300


def _checked(url: str) -> WebAddress | None:
    """None when it is refused; anything else than a refusal is an error."""
    try:
        return check_url(url)
    except ToolFailed as refusal:
        if refusal.kind != "forbidden_address" or refusal.retryable:
            raise
        return None


def _is_plainly_public(ip: Ip) -> bool:
    """By the library's own tables, for the address and for the IPv4 address in its low half."""
    inner = ip_address(int(ip) & 0xFFFFFFFF)
    wrapped = ip.version == 6 and str(ip).startswith(("::", "64:ff9b::"))
    return inner.is_global if wrapped else ip.is_global and not ip.is_multicast
