"""The endpoints that models are asked at, as the settings say it; no SDK is needed to read them."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from posthouse.errors import ConfigurationError
from posthouse.llm.pace import Limits

SETTING = "POSTHOUSE_ENDPOINTS"
OPENAI, ANTHROPIC = "openai", "anthropic"


class EndpointSetting(BaseModel):
    """One endpoint: its name in references, what it speaks, where it is; empty `base_url` is the vendor's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    kind: Literal["openai", "anthropic"] = "openai"
    base_url: str = Field("", pattern=r"^(https?://.*)?$")
    api_key: SecretStr | None = None
    requests_per_minute: int = Field(0, ge=0, le=10**9)
    tokens_per_minute: int = Field(0, ge=0, le=10**12)

    @property
    def key(self) -> str | None:
        """The key itself, None for none."""
        return self.api_key.get_secret_value() or None if self.api_key else None

    @property
    def limits(self) -> Limits:
        """The operator's limits."""
        return Limits(self.requests_per_minute, self.tokens_per_minute)


_ENDPOINTS = TypeAdapter(list[EndpointSetting])


def endpoints_of(
    text: str,
    *,
    openai_key: str | None = None,
    openai_url: str | None = None,
    anthropic_key: str | None = None,
) -> dict[str, EndpointSetting]:
    """Every endpoint by its name: those of the JSON text, and those that the plain settings make.

    Raises ConfigurationError with one line that shows no key.
    """
    listed = list(_listed(text)) if text.strip() else []
    if openai_key or openai_url:
        key = SecretStr(openai_key) if openai_key else None
        listed.append(EndpointSetting(name=OPENAI, base_url=openai_url or "", api_key=key))
    if anthropic_key:
        key = SecretStr(anthropic_key)
        listed.append(EndpointSetting(name=ANTHROPIC, kind="anthropic", api_key=key))
    found: dict[str, EndpointSetting] = {}
    for endpoint in listed:
        if endpoint.name in found:
            raise ConfigurationError(f"{SETTING}: the name {endpoint.name!r} is given twice")
        found[endpoint.name] = endpoint
    return found


def _listed(text: str) -> list[EndpointSetting]:
    try:
        return _ENDPOINTS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{SETTING}: {where + ': ' if where else ''}{first['msg']}"
        ) from None


def secrets_of(endpoints: Mapping[str, EndpointSetting]) -> list[str]:
    """The keys, which no log may show."""
    return [endpoint.key for endpoint in endpoints.values() if endpoint.key]
