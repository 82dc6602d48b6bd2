from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import ToolFailed
from posthouse.tools.guard import MAX_URL, WebAddress, check_url, is_public, redirected

any_text = st.text(st.characters(codec=None, exclude_categories=()))

NOT_PUBLIC_V4 = [
    "127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.0.1",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.0.1",
    "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16",
]  # fmt: skip
PUBLIC_V4 = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "169.253.0.1"]
NOT_PUBLIC_V6 = [
    "::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1",
    "ff0e::1",
    "2001:db8::1", "3fff::1", "100::1", "64:ff9b:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1", "2001:2::1", "5f00::1", "4000::1", "::ffff:0:7f00:1",
]  # fmt: skip


def _wrapped(v4: str) -> list[str]:
    number = int(IPv4Address(v4))
    high, low = number >> 16, number & 0xFFFF
    return [
        f"::ffff:{v4}",
        f"::{v4}",
        f"64:ff9b::{v4}",
        f"2002:{high:x}:{low:x}::1",
        f"2606:4700::5efe:{v4}",
        f"2606:4700::200:5efe:{v4}",
    ]


@pytest.mark.parametrize("ip", NOT_PUBLIC_V4 + NOT_PUBLIC_V6)
def test_these_are_not_public(ip: str) -> None:
    assert not is_public(ip_address(ip))


@pytest.mark.parametrize(
    "ip", [*PUBLIC_V4, "2606:4700::1111", "2a00:1450:4001::8a", "2001:4860::1"]
)
def test_these_are_public(ip: str) -> None:
    assert is_public(ip_address(ip))


@pytest.mark.parametrize("v4", NOT_PUBLIC_V4)
def test_no_wrapping_makes_an_address_public(v4: str) -> None:
    assert [ip for ip in _wrapped(v4) if is_public(ip_address(ip))] == []


@pytest.mark.parametrize("v4", PUBLIC_V4)
def test_a_wrapped_public_address_stays_public(v4: str) -> None:
    assert [ip for ip in _wrapped(v4) if not is_public(ip_address(ip))] == []


@given(st.ip_addresses(v=4))
def test_every_wrapping_is_judged_as_what_it_wraps(v4: IPv4Address) -> None:
    for ip in _wrapped(str(v4)):
        assert is_public(ip_address(ip)) == is_public(v4)


@given(st.ip_addresses())
def test_what_is_public_is_global_for_python_too(ip: IPv4Address | IPv6Address) -> None:
    if is_public(ip) and str(ip) not in _wrapped(str(IPv4Address(int(ip) & 0xFFFFFFFF))):
        assert ip.is_global or (isinstance(ip, IPv6Address) and ip.sixtofour is not None)
        assert not ip.is_multicast


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://Example.ORG", WebAddress("http", "example.org", 80, "/")),
        (" https://example.org./a?b=c#d\n", WebAddress("https", "example.org", 443, "/a?b=c")),
        ("HTTP://example.org:443/", WebAddress("http", "example.org", 443, "/")),
        ("http://example.org:/", WebAddress("http", "example.org", 80, "/")),
        ("http://bücher.example/ä?ö=%41", WebAddress(
            "http", "xn--bcher-kva.example", 80, "/%C3%A4?%C3%B6=%41")),
        ("http://1.1.1.1/", WebAddress("http", "1.1.1.1", 80, "/")),
        ("http://[2606:4700::0:1]/", WebAddress("http", "2606:4700::1", 80, "/")),
        ("http://a_b.example/a//b/../c", WebAddress("http", "a_b.example", 80, "/a//c")),
        ("http://a.example/../..//./b/.", WebAddress("http", "a.example", 80, "//b/")),
        ("http://a.example/a/../..", WebAddress("http", "a.example", 80, "/")),
        ("http://a.example/a/.b/..c/%2e%2e/x..", WebAddress(
            "http", "a.example", 80, "/a/.b/..c/%2e%2e/x..")),
    ],
)  # fmt: skip
def test_good_addresses_are_taken_apart(url: str, address: WebAddress) -> None:
    assert check_url(url) == address
    assert check_url(str(address)) == address


def test_an_address_names_its_port_only_when_it_must() -> None:
    assert str(check_url("http://a.example:80/x")) == "http://a.example/x"
    assert str(check_url("http://a.example:443/x")) == "http://a.example:443/x"
    assert check_url("https://[2606:4700::1]:80/").authority == "[2606:4700::1]:80"


@pytest.mark.parametrize(
    "url",
    [
        "", "example.org", "//example.org", "/path", "http:", "http://", "http:///path", "http:a",
        "ftp://example.org/", "file:///etc/passwd", "gopher://example.org/", "javascript:alert(1)",
        "data:text/html,x", "unix:///run/x.sock", "ws://example.org", "http+unix://%2Frun%2Fx",
        "http://example.org:22/", "http://example.org:8080/", "http://example.org:0/",
        "http://example.org:65536/", "http://example.org:-1/", "http://example.org:8x/",
        "http://example.org:٨٠/", "http://user@example.org/", "http://user:pw@example.org/",
        "http://@example.org/", "http://example.org\\@127.0.0.1/", "http://127.0.0.1\\.example.org/",
        "http://exa mple.org/", "http://example.org/a b", "http://exam\tple.org/", "http://exam\nple.org/",
        "http://example.org/\r\nHost: x", "http://example.org\0/", "http://a..b/", "http://.example.org/",
        "http://-/", "http://exam%70le.org/", "http://%31%32%37.0.0.1/", "http://[::1/", "http://::1/",
        "http://[::1]x/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[v1.a]/",
        "http://[127.0.0.1]/", "http://exa$mple.org/", "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 130 + "example/", "http://example.org/" + "a" * MAX_URL, "http://a\ud800.example/",
        "http://example.org/\ud800", "http://exam\u2100ple.org/", "http://a,b/", "http://*/", "https://../",
    ],
)  # fmt: skip
def test_bad_addresses_are_forbidden(url: str) -> None:
    with pytest.raises(ToolFailed, match="this address is not allowed") as raised:
        check_url(url)
    assert raised.value.kind == "forbidden_address"
    assert not raised.value.retryable


def test_the_reason_does_not_repeat_the_address() -> None:
    with pytest.raises(ToolFailed) as raised:
        check_url("http://user:secret@example.org/")
    assert "secret" not in str(raised.value)


def test_ports_can_be_given() -> None:
    assert check_url("http://a.example:8080/", ports=frozenset({8080})).port == 8080
    with pytest.raises(ToolFailed, match="port 80 is not read"):
        check_url("http://a.example/", ports=frozenset({8080}))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "https://a.example/b"),
        ("b?c", "https://a.example/x/b?c"),
        ("//b.example", "https://b.example/"),
        ("https://b.example:80/#f", "https://b.example:80/"),
        ("", "https://a.example/x/y"),
    ],
)
def test_redirects_are_resolved(location: str, target: str) -> None:
    assert str(redirected(check_url("https://a.example/x/y"), location)) == target


@pytest.mark.parametrize(
    "location",
    ["http://b.example/", "http://a.example/x", "ftp://a.example", "file:///etc/passwd",
     "//a.example:22", "https://u@b.example/", "//[::1", "\\\\b.example", "/a\r\nb",
     "/" + "a" * MAX_URL, "data:,x"],
)  # fmt: skip
def test_bad_redirects_are_forbidden(location: str) -> None:
    with pytest.raises(ToolFailed) as raised:
        redirected(check_url("https://a.example/x/y"), location)
    assert raised.value.kind == "forbidden_address"


def test_http_may_lead_to_https() -> None:
    assert redirected(check_url("http://a.example/"), "https://a.example/").scheme == "https"


URLS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "http:", "HTTP://", ""]),
    st.text("a1.:@[]%x\\/?#-_①。 \t", max_size=30) | any_text,
    st.sampled_from(["", ":80", ":443", ":22", "/", "@"]),
    any_text,
)


@given(URLS)
def test_whatever_passes_keeps_every_rule(url: str) -> None:
    with suppress(ToolFailed):
        address = check_url(url)
        assert address.scheme in ("http", "https")
        assert address.port in (80, 443)
        assert address.target.startswith("/")
        for part in (address.host, address.target):
            assert part.isascii()
            assert part.isprintable()
            assert not set(part) & set(" \\#")
        assert not set(address.host) & set("/?@%[]")
        assert check_url(str(address)) == address


@given(URLS, URLS)
def test_any_location_is_judged(url: str, location: str) -> None:
    with suppress(ToolFailed):
        current = check_url(url)
        following = redirected(current, location)
        assert (current.scheme, following.scheme) != ("https", "http")


@pytest.mark.parametrize("piece", ["http://", "@", "[", "a.", "%", "①", ":", "?", "#", "\u0130"])
def test_a_megabyte_is_judged_at_once(piece: str) -> None:
    begun = perf_counter()
    for url in (piece * 1_000_000, ("http://" + piece * 2000)[:MAX_URL]):
        with suppress(ToolFailed):
            check_url(url)
    assert perf_counter() - begun < 1
