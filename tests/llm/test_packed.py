"""An endpoint that packs what nobody asked it to pack costs next to nothing."""

import gzip
import time

import pytest

from posthouse.errors import Fatal, ModelUnavailable, RunCode
from posthouse.llm.messages import ModelRequest, UserMessage
from posthouse.llm.providers.openai import openai_provider
from posthouse.testing.endpoint import ModelEndpoint, answered

REQUEST = ModelRequest(model="m", messages=(UserMessage(text="hi"),))
PACKED = gzip.compress(b"\n" * 50_000_000)


async def test_a_packed_stream_is_not_unpacked() -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "text/event-stream"}
    async with ModelEndpoint(answered(200, PACKED, headers)) as endpoint:
        provider = openai_provider(api_key="k", base_url=endpoint.url)
        began = time.process_time()
        with pytest.raises(ModelUnavailable) as raised:
            await provider.complete(REQUEST, lambda _: None)
        assert time.process_time() - began < 1
        await provider.aclose()
    assert raised.value.code is RunCode.CONNECTION


async def test_a_packed_error_is_not_unpacked() -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with ModelEndpoint(answered(401, PACKED, headers)) as endpoint:
        provider = openai_provider(api_key="k", base_url=endpoint.url)
        began = time.process_time()
        with pytest.raises(Fatal):
            await provider.complete(REQUEST, lambda _: None)
        assert time.process_time() - began < 1
        await provider.aclose()
