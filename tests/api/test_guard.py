import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_app.guard import BodyGuard, check_json
from posthouse.errors import InvalidRequest

RUNS = "/api/v1/runs"
JSON = {"Content-Type": "application/json"}


def nested(depth: int, kind: str = "[]") -> bytes:
    return kind[0].encode() * depth + kind[1].encode() * depth


BAD = {
    "text": b"hello",
    "half": b'{"workflow": "echo", ',
    "two": b"{} {}",
    "not UTF-8": b'{"a":"\xff"}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "raw line break": b'{"a":"\n"}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "twice": b'{"a":1,"a":2}',
    "twice, escaped": b'{"a":1,"\\u0061":2}',
    "twice, deep": b'[{"b:":{"x":1,"y":":","x":":"}}]',
    "deep": nested(65),
    "very deep": nested(40_000),
    "deep objects": b'{"a":' * 65 + b"1" + b"}" * 65,
    "open": b"[" * 90_000,
    "huge": b'{"a":' + b"9" * 5_000 + b"}",
    "65 bits": b'{"a":18446744073709551616}',
    "-64 bits": b'{"a":-9223372036854775809}',
    "huge exponent": b'{"a":1e999999}',
    "quotes": b'"' * 90_001,
    "backslashes": b'"' + b'\\"' * 45_000,
}


@pytest.mark.parametrize("name", BAD)
async def test_each_bad_body_is_a_400_that_helps_and_is_quick(client, name):
    began = time.perf_counter()
    response = await client.post(RUNS, content=BAD[name], headers=JSON)
    print(f"{name}: {1000 * (time.perf_counter() - began):.1f} ms")
    body = response.json()

    assert (response.status_code, body["code"]) == (400, "invalid_request")
    assert body["errors"][0]["location"] == "body"
    assert len(response.content) < 1000


async def test_the_position_is_told(client):
    response = await client.post(RUNS, content=b'{\n  "a": nope}', headers=JSON)

    assert "line 2, column 8" in response.json()["detail"]


SAID = {
    nested(10_000): "the body is nested deeper than 64 levels",
    b'{"a":' * 3_000 + b"1" + b"}" * 3_000: "the body is nested deeper than 64 levels",
    nested(65): "the body is nested deeper than 64 levels",
    b'{"a":1e999}': "a number is too large (line 1, column 6)",
    b'{"a":-1e999}': "a number is too large (line 1, column 6)",
    b'{"a":' + b"9" * 5_000 + b"}": "a number is too large (line 1, column 6)",
    b'{"a":"\xc3\xa4\xff"}': "the body is not UTF-8 (byte 9)",
    "{}".encode("utf-16"): "the body is not UTF-8 (byte 1)",
    b"[1,\n NaN]": "the body is not JSON, which has no NaN (line 2, column 2)",
    b"[-NaN]": "the body is not JSON, which has no NaN (line 1, column 3)",
    '{"ä":Infinity}'.encode(): "the body is not JSON, which has no Infinity (line 1, column 6)",
    b"-Infinity": "the body is not JSON, which has no Infinity (line 1, column 2)",
    b'{"a":1,"a":2}': "an object in the body has the same key twice",
}


@pytest.mark.parametrize("body", SAID, ids=lambda body: repr(body[:12]))
async def test_what_is_wrong_with_a_body_is_named(client, body):
    response = await client.post(RUNS, content=body, headers=JSON)

    assert response.json()["detail"] == SAID[body]


GOOD = [
    nested(64),
    b'{"a":{"a":1},"b":[{"a":1},{"a":2}]}',
    b'{"a":"[[[[:{\\"a\\":1,\\"a\\":1}"}',
    b'{"a":18446744073709551615,"b":-9223372036854775808,"c":0.12345678901234567890123}',
    b'{"a":123456789012345678901234567890.5,"b":12345678901234567890123e2}',
    b' \t\r\n["\\u00e4\\ud83d\\ude00"] ',
    b"null",
]


def refusal(body):
    """What check_json says against the body, if anything."""
    try:
        check_json(body)
    except InvalidRequest as error:
        return str(error)
    return None


@pytest.mark.parametrize("body", GOOD)
def test_what_is_sane_passes(body):
    assert refusal(body) is None


TREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(-1, 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(TREE, st.booleans())
def test_what_python_writes_passes(value, ascii_only):
    try:
        text = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    if b"\\ud" not in text:
        assert refusal(text) is None


@given(st.dictionaries(st.text('ab:"\\'), st.integers(), min_size=1), st.text('ab:"\\'))
def test_a_repeated_key_never_passes(value, other):
    text = json.dumps(value)
    key = json.dumps(next(iter(value)))
    with pytest.raises(InvalidRequest):
        check_json(f"{text[:-1]},{json.dumps(other + 'x')}:1,{key}:2}}".encode())


async def test_a_body_above_the_limit_is_a_413(client):
    declared = await client.post(RUNS, content=b"x" * 100_001, headers=JSON)

    async def parts():
        for _ in range(11):
            yield b"[" * 10_000

    streamed = await client.post(RUNS, content=parts(), headers=JSON)
    for response in (declared, streamed):
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
        assert response.headers["connection"] == "close"


async def test_half_a_body_is_no_request():
    sent = [
        {"type": "http.request", "body": b'{"a":1}', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return sent.pop(0)

    async def never(*_):
        pytest.fail("nobody is there")

    scope = {"type": "http", "path": "/", "headers": [(b"content-length", b"8")]}
    await BodyGuard(never, 100)(scope, receive, never)
    assert sent == []


async def test_another_content_type_is_a_415(client):
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/xml", "x"):
        response = await client.post(RUNS, content=b"{}", headers={"Content-Type": kind})
        assert (response.status_code, response.json()["code"]) == (415, "invalid_request")


async def test_json_under_its_other_names(client):
    body = b'{"workflow":"echo","input":{"text":"hi"}}'
    for kind in ("application/json; charset=utf-8", "application/merge-patch+json", ""):
        response = await client.post(RUNS, content=body, headers={"Content-Type": kind})
        assert response.status_code == 202, kind


async def test_a_compressed_body_is_a_415(client):
    body = b'{"workflow":"echo","input":{"text":"hi"}}'
    for coding, status in (("gzip", 415), ("br, identity", 415), ("identity", 202), ("", 415)):
        headers = JSON | {"Content-Encoding": coding}
        response = await client.post(RUNS, content=body, headers=headers)
        assert response.status_code == status, coding
