"""Each way in which Redis can be away is one error with a name for it; faults of ours are not among them."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    DataError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.storage.connect import available, connect


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ConnectionError("gone"), "does not answer"),
        (TimeoutError("slow"), "does not answer"),
        (BusyLoadingError("loading"), "does not answer"),
        (OSError(111, "refused"), "does not answer"),
        (
            RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed"),
            "does not answer",
        ),
        (OutOfMemoryError("x"), "is full"),
        (ResponseError("OOM command not allowed when used memory > 'maxmemory'."), "is full"),
        (ReadOnlyError("x"), "is read-only"),
        (ResponseError("BUSY Redis is busy running a script"), "cannot serve"),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), "cannot serve"),
        (AuthenticationError("x"), "credentials"),
    ],
)
def test_redis_that_cannot_serve_is_unavailable(error: Exception, meaning: str) -> None:
    with pytest.raises(StorageUnavailable, match=meaning), available():
        raise error


@pytest.mark.parametrize(
    "error",
    [DataError("a float"), ResponseError("WRONGTYPE"), RuntimeError("a fault"), ValueError()],
)
def test_a_fault_of_ours_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), available():
        raise error


@pytest.mark.parametrize("url", ["foo://x", "redis://host:notaport", "", "redis://host?colour=1"])
def test_a_wrong_url_is_said_in_one_line(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"REDIS_URL: [^\n]+$"):
        connect(url)


def test_a_piece_of_a_password_that_was_taken_for_a_port_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="its port is no number") as refused:
        connect("redis://courier:sec/ret@host")
    assert "sec" not in str(refused.value)


def test_user_password_and_tls_come_from_the_url() -> None:
    pool = connect("rediss://me:s%40cret@host:6380/2?ssl_ca_certs=ca.pem").connection_pool
    assert pool.connection_class is SSLConnection
    wanted = {"host": "host", "port": 6380, "db": 2, "username": "me", "password": "s@cret"}
    assert wanted.items() <= pool.connection_kwargs.items()
    assert pool.connection_kwargs["ssl_ca_certs"] == "ca.pem"


async def test_a_socket_on_this_machine(tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(ping, tmp_path / "redis.sock")
    async with server, connect(f"unix://{tmp_path}/redis.sock") as redis:
        assert await redis.ping()


async def ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if line.strip() in (b"CLIENT", b"PING"):
            writer.write(b"+OK\r\n" if line.strip() == b"CLIENT" else b"+PONG\r\n")
            await writer.drain()
    writer.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of its own for 127.0.0.1; key.pem lies beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    where, subject = tmp_path / "cert.pem", "/CN=posthouse test"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", subject, "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", tmp_path / "key.pem", "-out", where],
        check=True, capture_output=True,
    )  # fmt: skip
    return where


@pytest.fixture
async def tls_port(
    certificate: Path, free_tcp_port_factory: Callable[[], int]
) -> AsyncIterator[int]:
    """A server that speaks only TLS, to the user `courier` with the password `s@cret`."""
    program, port = shutil.which("redis-server"), free_tcp_port_factory()
    if program is None:
        pytest.skip("no redis-server here that could speak TLS")
    process = await asyncio.create_subprocess_exec(
        program, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--tls-cert-file", certificate, "--tls-key-file", certificate.with_name("key.pem"),
        "--tls-ca-cert-file", certificate, "--tls-auth-clients", "no",
        "--user", "courier", "on", ">s@cret", "~*", "&*", "+@all", "--user", "default", "off",
        cwd=certificate.parent, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(15):
            while b"Ready to accept" not in (line := await process.stdout.readline()):
                if not line:
                    pytest.skip("this redis-server speaks no TLS")
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_server_with_tls_user_and_password(tls_port: int, certificate: Path) -> None:
    place = f"127.0.0.1:{tls_port}"
    trusted = f"?ssl_ca_certs={certificate}&ssl_check_hostname=true"
    async with connect(f"rediss://courier:s%40cret@{place}{trusted}") as redis:
        assert await redis.ping()
    for url in (
        f"rediss://courier:wrong@{place}{trusted}",
        f"rediss://courier:s%40cret@{place}",
        f"redis://courier:s%40cret@{place}",
    ):
        async with connect(url) as redis:
            with pytest.raises(StorageUnavailable), available():
                await redis.ping()
