"""Which endpoints and models the settings of a worker come to."""

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from posthouse.errors import ConfigurationError
from posthouse.llm.router import Tier, Wanted
from posthouse.settings import Settings
from posthouse.telemetry import Metrics
from worker_app.outside import endpoints_in, outside, routes_in


def settings(**given: str) -> Settings:
    return Settings(_env_file=None, **given)


def told(given: Settings) -> tuple[list[str], list[str]]:
    routes = routes_in(given, endpoints_in(given))
    return [str(one) for one in routes.smart], [str(one) for one in routes.fast]


def test_one_model_is_both_tiers() -> None:
    assert told(settings(openai_api_key="k", openai_model="m:8b")) == (
        ["openai:m:8b"],
        ["openai:m:8b"],
    )


def test_tiers_have_models_at_several_endpoints() -> None:
    given = settings(
        openai_api_key="k",
        anthropic_api_key="k",
        endpoints='[{"name": "local", "base_url": "http://h/v1"}]',
        models_smart="anthropic:claude, openai:gpt",
        models_fast="local:llama3:8b",
    )
    assert told(given) == (["anthropic:claude", "openai:gpt"], ["local:llama3:8b"])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {},
            "no model: set OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY or POSTHOUSE_ENDPOINTS",
        ),
        (
            {"anthropic_api_key": "k"},
            "POSTHOUSE_MODELS_SMART: name a model; without one it is 'openai:gpt-4o', and there is no endpoint "
            "'openai'; there is: anthropic",
        ),
        (
            {"anthropic_api_key": "k", "models_smart": "anthropic:claude"},
            "POSTHOUSE_MODELS_FAST: name a model; without one it is 'openai:gpt-4o'",
        ),
        (
            {
                "anthropic_api_key": "k",
                "models_smart": "openai:gpt",
                "models_fast": "anthropic:claude",
            },
            "POSTHOUSE_MODELS_SMART: there is no endpoint 'openai'; there is: anthropic",
        ),
        (
            {"openai_api_key": "k", "models_fast": "gpt"},
            "POSTHOUSE_MODELS_FAST: 'gpt' is no model; write it as 'provider:model'",
        ),
        ({"endpoints": "[{]"}, "POSTHOUSE_ENDPOINTS: Invalid JSON"),
    ],
)
def test_what_is_wrong_is_one_line(given: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        told(settings(**given))
    assert str(raised.value).startswith(line)


def test_no_key_is_shown() -> None:
    given = settings(
        openai_api_key="sk-one",
        anthropic_api_key="sk-two",
        endpoints='[{"name": "x", "api_key": "sk-three"}]',
    )
    shown = repr(given) + str(given) + repr(endpoints_in(given))
    assert not any(key in shown for key in ("sk-one", "sk-two", "sk-three"))


async def test_a_worker_asks_at_every_endpoint(redis: Redis) -> None:
    given = settings(
        openai_api_key="k", anthropic_api_key="k", models_fast="anthropic:claude", search="corpus"
    )
    world = outside(given, redis, Metrics(CollectorRegistry()))
    try:
        [fast] = world.models.choices(Wanted(Tier.FAST))
        assert (fast.provider, fast.model, len(world.clients)) == ("anthropic", "claude", 2)
    finally:
        await world.close()


def test_a_missing_extra_is_one_line_and_without_such_an_endpoint_no_sdk_is_loaded() -> None:
    code = """
import sys
sys.modules["anthropic"] = None
from prometheus_client import CollectorRegistry
from posthouse.errors import ConfigurationError
from posthouse.settings import Settings
from posthouse.storage.connect import connect
from posthouse.telemetry import Metrics
from worker_app.outside import outside
for more in ({}, {"anthropic_api_key": "k"}):
    try:
        outside(Settings(_env_file=None, openai_api_key="k", **more),
                connect("redis://127.0.0.1:1"), Metrics(CollectorRegistry()))
        print("fine")
    except ConfigurationError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == [
        "fine",
        "the endpoint 'anthropic' needs the extra: pip install 'posthouse[anthropic]'",
    ]
