"""Wrong requests, said the way an OpenAI-compatible server says it."""

import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from posthouse.embedded.standin.script import Status

_TOLD = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


class Refused(Exception):
    """The request gets an error answer: its HTTP status, type, code, and the parameter to blame."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = "invalid_value",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def response(self) -> Response:
        """The answer, `{"error": {"message", "type", "param", "code"}}`."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        headers = {} if self.retry_after is None else {"retry-after": f"{self.retry_after:g}"}
        body = orjson.dumps({"error": error})
        return Response(body, self.status, headers=headers, media_type="application/json")


def misfit(error: ValidationError) -> Refused:
    """The body does not have the right shape; tells the first thing that is wrong."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        message = f"Missing required parameter: {param!r}."
        return Refused(message, code="missing_required_parameter", param=param)
    # Who sends JSON knows no tuples.
    said = first["msg"].replace("valid tuple", "valid list").replace("Tuple should", "List should")
    return Refused(f"Invalid value for {param!r}: {said}.", param=param)


def parsed(body: bytes) -> object:
    """The JSON of a body. Raises Refused."""
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    return value


def check_key(request: Request) -> None:
    """Accepts no key and any key but those that start with `sk-bad`. Raises Refused."""
    key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if key.startswith("sk-bad"):
        raise Refused("The API key is not valid.", status=401, code="invalid_api_key")


def check_model(name: str) -> None:
    """Accepts every name but `missing-model`. Raises Refused."""
    if name == "missing-model":
        message = f"The model {name!r} does not exist."
        raise Refused(message, status=404, code="model_not_found", param="model")


def told_status(told: Status) -> Refused:
    """The error answer that the script asks for."""
    kind, code = _TOLD.get(told.status, ("server_error" if told.status >= 500 else None, None))
    return Refused(
        told.message or f"The stand-in was told to answer {told.status}.",
        status=told.status,
        kind=kind or "invalid_request_error",
        code=told.code or code,
        retry_after=told.retry_after,
    )
