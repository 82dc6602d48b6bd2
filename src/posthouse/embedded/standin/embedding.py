"""Texts as vectors: hashed bags of words, so that texts with common words are near each other."""

import base64
import hashlib
import math
import struct
from collections import Counter
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from posthouse.embedded.standin.refused import check_key, check_model, misfit, parsed
from posthouse.embedded.standin.wire import tokens
from posthouse.embedded.standin.words import stem, telling, words

DIMENSIONS = 256

_Text = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[list[int], Field(min_length=1)]


class _Body(BaseModel):
    model: str = Field(min_length=1)
    input: _Text | _Tokens | Annotated[list[_Text | _Tokens], Field(min_length=1, max_length=2048)]
    dimensions: int = Field(default=DIMENSIONS, ge=1, le=8192)
    encoding_format: Literal["float", "base64"] = "float"


async def embeddings(request: Request) -> Response:
    """The embeddings route. Raises Refused."""
    check_key(request)
    try:
        body = _Body.model_validate(parsed(await request.body()))
    except ValidationError as error:
        raise misfit(error) from error
    check_model(body.model)
    texts = _texts(body.input)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(text, body)}
        for index, text in enumerate(texts)
    ]
    used = tokens(sum(map(len, texts)))
    usage = {"prompt_tokens": used, "total_tokens": used}
    answer = {"object": "list", "model": body.model, "data": data, "usage": usage}
    return Response(orjson.dumps(answer), media_type="application/json")


def embedded(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A unit vector, the same for the same text; a word counts by the root of its number."""
    vector = [0.0] * dimensions
    known = frozenset(telling(text))
    counts = Counter(stem(word) for word in words(text) if word in known)
    for word, count in (counts or Counter([text])).items():
        place, sign = _place(word, dimensions)
        vector[place] += sign * math.sqrt(count)
    length = math.sqrt(sum(value * value for value in vector))
    if not length:  # words met in one place and cancelled each other
        vector[0] = length = 1.0
    return [value / length for value in vector]


def _place(word: str, dimensions: int) -> tuple[int, float]:
    digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
    return (digest >> 1) % dimensions, 1.0 if digest & 1 else -1.0


def _texts(given: str | list[int] | list[str | list[int]]) -> list[str]:
    """Each input as text; tokens as their numbers."""
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [" ".join(map(str, given))]
    return [item if isinstance(item, str) else " ".join(map(str, [item])) for item in given]


def _encoded(text: str, body: _Body) -> list[float] | str:
    vector = embedded(text, body.dimensions)
    if body.encoding_format == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
