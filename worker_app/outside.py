"""What a worker reaches the outside world with: the model, the search, the pages."""

from dataclasses import dataclass

from pydantic import SecretStr
from redis.asyncio import Redis

from posthouse.errors import ConfigurationError
from posthouse.llm.breaker import Breaker, Endpoint
from posthouse.llm.guarded import Guarded
from posthouse.llm.providers.openai import DEFAULT_BASE_URL, OpenAIProvider, openai_provider
from posthouse.llm.retry import RetryingProvider
from posthouse.settings import Settings
from posthouse.telemetry import Metrics
from posthouse.tools.corpus import Corpus
from posthouse.tools.fetch import WebReader
from posthouse.tools.model import Resources
from posthouse.tools.pages import Pages
from posthouse.tools.search import WebSearch, search_provider


@dataclass(frozen=True)
class Outside:
    """Clients that live as long as the process."""

    models: RetryingProvider
    resources: Resources
    provider: OpenAIProvider
    search: WebSearch | Corpus
    corpus: Corpus
    web: WebReader

    async def close(self) -> None:
        """Closes every connection."""
        await self.provider.aclose()
        if isinstance(self.search, WebSearch):
            await self.search.aclose()
        await self.web.aclose()
        self.corpus.close()


def outside(settings: Settings, redis: Redis, metrics: Metrics) -> Outside:
    """The clients that the settings ask for. Raises ConfigurationError."""
    key = secret(settings.openai_api_key)
    if not key and not settings.openai_base_url:
        raise ConfigurationError("no model: set OPENAI_API_KEY or OPENAI_BASE_URL")
    corpus = Corpus(settings.corpus)
    search = search_provider(
        settings.search,
        key=secret(settings.search_api_key),
        url=settings.search_url,
        corpus=corpus,
    )
    web = WebReader()
    provider = openai_provider(api_key=key, base_url=settings.openai_base_url)
    endpoint = Endpoint.at(settings.openai_base_url or DEFAULT_BASE_URL)
    models = RetryingProvider(Guarded(provider, Breaker(redis), endpoint, metrics))
    resources = Resources(search=search, pages=Pages(corpus, web))
    return Outside(models, resources, provider, search, corpus, web)


def secret(value: SecretStr | None) -> str | None:
    """What the setting hides."""
    return value.get_secret_value() if value else None
