"""What a caller is told of a field that does not fit, in words of our own where pydantic's are no plain ones."""

from collections.abc import Mapping

_NO_OBJECT = "must be an object"
_WORDS: Mapping[str, str] = {
    "extra_forbidden": "there is no such field",
    "timezone_aware": "needs an offset, such as Z",
    "model_attributes_type": _NO_OBJECT,
    "model_type": _NO_OBJECT,
    "dict_type": _NO_OBJECT,
}


def in_words(kind: str, message: str) -> str:
    """The words for an error of that type of pydantic's; its own message for any other."""
    return _WORDS.get(kind, message)
