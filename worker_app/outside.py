"""What a worker reaches the outside world with: the models, the search, the pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import SecretStr
from redis.asyncio import Redis

from posthouse.errors import ConfigurationError
from posthouse.llm.breaker import Breaker, Endpoint
from posthouse.llm.endpoints import EndpointSetting, endpoints_of
from posthouse.llm.guarded import Guarded
from posthouse.llm.pace import Pace
from posthouse.llm.provider import Heard, ModelProvider
from posthouse.llm.providers.openai import DEFAULT_BASE_URL, openai_provider
from posthouse.llm.rate import Rate
from posthouse.llm.retry import RetryingProvider
from posthouse.llm.routed import Routed
from posthouse.llm.router import Routes, references_in, routes_of
from posthouse.settings import Settings
from posthouse.telemetry import Metrics
from posthouse.tools.corpus import Corpus
from posthouse.tools.fetch import WebReader
from posthouse.tools.model import Resources
from posthouse.tools.pages import Pages
from posthouse.tools.search import WebSearch, search_provider


class Client(ModelProvider, Protocol):
    """A provider with connections."""

    async def aclose(self) -> None:
        """Closes every connection."""
        ...


@dataclass(frozen=True)
class Outside:
    """Clients that live as long as the process."""

    models: Routed
    resources: Resources
    clients: tuple[Client, ...]
    search: WebSearch | Corpus
    corpus: Corpus
    web: WebReader

    async def close(self) -> None:
        """Closes every connection."""
        for client in self.clients:
            await client.aclose()
        if isinstance(self.search, WebSearch):
            await self.search.aclose()
        await self.web.aclose()
        self.corpus.close()


def outside(settings: Settings, redis: Redis, metrics: Metrics) -> Outside:
    """The clients that the settings ask for. Raises ConfigurationError."""
    endpoints = endpoints_in(settings)
    routes = routes_in(settings, endpoints)
    corpus = Corpus(settings.corpus)
    search = search_provider(
        settings.search,
        key=secret(settings.search_api_key),
        url=settings.search_url,
        corpus=corpus,
    )
    web = WebReader()
    models, clients = _models(endpoints, routes, redis, metrics)
    resources = Resources(search=search, pages=Pages(corpus, web))
    return Outside(models, resources, clients, search, corpus, web)


def endpoints_in(settings: Settings) -> dict[str, EndpointSetting]:
    """Every endpoint that the settings name. Raises ConfigurationError, also when there is none."""
    endpoints = endpoints_of(
        secret(settings.endpoints) or "",
        openai_key=secret(settings.openai_api_key),
        openai_url=settings.openai_base_url,
        anthropic_key=secret(settings.anthropic_api_key),
    )
    if not endpoints:
        raise ConfigurationError(
            "no model: set OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY or POSTHOUSE_ENDPOINTS"
        )
    return endpoints


def routes_in(settings: Settings, endpoints: Mapping[str, EndpointSetting]) -> Routes:
    """The models of each tier. Raises ConfigurationError."""
    usual = f"openai:{settings.openai_model}"
    tiers = {
        "POSTHOUSE_MODELS_SMART": settings.models_smart.strip(),
        "POSTHOUSE_MODELS_FAST": settings.models_fast.strip(),
    }
    for setting, named in tiers.items():
        if not named and "openai" not in endpoints:
            raise ConfigurationError(
                f"{setting}: name a model; without one it is {usual!r}, and there is no endpoint "
                f"'openai'; there is: {', '.join(sorted(endpoints))}"
            )
    smart, fast = (references_in(setting, named or usual) for setting, named in tiers.items())
    return routes_of(smart, fast, endpoints)


def _models(
    endpoints: Mapping[str, EndpointSetting], routes: Routes, redis: Redis, metrics: Metrics
) -> tuple[Routed, tuple[Client, ...]]:
    breaker, pace = Breaker(redis), Pace(redis)
    clients: list[Client] = []
    providers: dict[str, RetryingProvider] = {}
    for name, setting in endpoints.items():
        where = Endpoint.at(setting.base_url or _usual_address(setting))
        rate = Rate(pace, where, setting.limits)
        client = _client(setting, rate.hear)
        clients.append(client)
        providers[name] = RetryingProvider(Guarded(client, breaker, where, metrics, rate=rate))
    return Routed(providers, routes), tuple(clients)


def _usual_address(setting: EndpointSetting) -> str:
    return DEFAULT_BASE_URL if setting.kind == "openai" else "https://api.anthropic.com"


def _client(setting: EndpointSetting, heard: Heard) -> Client:
    if setting.kind == "openai":
        return openai_provider(api_key=setting.key, base_url=setting.base_url or None, heard=heard)
    try:
        # Only here: its SDK is an extra, and takes its time to load.
        from posthouse.llm.providers.anthropic import anthropic_provider
    except ImportError:
        raise ConfigurationError(
            f"the endpoint {setting.name!r} needs the extra: pip install 'posthouse[anthropic]'"
        ) from None
    return anthropic_provider(api_key=setting.key, base_url=setting.base_url or None, heard=heard)


def secret(value: SecretStr | None) -> str | None:
    """What the setting hides."""
    return value.get_secret_value() if value else None
