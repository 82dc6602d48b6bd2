import pytest

from posthouse.errors import ConfigurationError
from posthouse.llm.endpoints import endpoints_of, secrets_of
from posthouse.llm.pace import Limits

LISTED = """[{"name": "local", "base_url": "http://host:1/v1", "requests_per_minute": 60},
  {"name": "claude", "kind": "anthropic", "api_key": "sk-very-secret", "tokens_per_minute": 5}]"""


def test_endpoints_are_those_of_the_list_and_of_the_plain_settings() -> None:
    found = endpoints_of(LISTED, openai_key="sk-open", anthropic_key="sk-anthropic")
    assert sorted(found) == ["anthropic", "claude", "local", "openai"]
    assert found["local"].limits == Limits(60, 0)
    assert (found["local"].kind, found["local"].key) == ("openai", None)
    assert (found["openai"].base_url, found["openai"].key) == ("", "sk-open")
    assert (found["anthropic"].kind, found["claude"].limits) == ("anthropic", Limits(0, 5))
    assert secrets_of(found) == ["sk-very-secret", "sk-open", "sk-anthropic"]
    assert "secret" not in repr(found) + str(found)


def test_a_key_or_an_address_makes_the_endpoint_openai() -> None:
    assert endpoints_of("") == {}
    assert list(endpoints_of("", openai_url="http://host/v1")) == ["openai"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "Invalid JSON"),
        ("{}", "valid array"),
        ('[{"kind": "openai"}]', "0.name: Field required"),
        ('[{"name": "A b"}]', "0.name: String should match"),
        ('[{"name": "a", "kind": "other", "api_key": "sk-secret"}]', "0.kind: Input should be"),
        ('[{"name": "a", "base_url": "host/sk-secret"}]', "0.base_url: String should match"),
        ('[{"name": "a", "key": "sk-secret"}]', "0.key: Extra inputs"),
        ('[{"name": "a", "requests_per_minute": -1}]', "0.requests_per_minute: "),
        ('[{"name": "openai"}]', "the name 'openai' is given twice"),
    ],
)
def test_a_wrong_list_is_one_line_without_its_secrets(text: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        endpoints_of(text, openai_key="sk-secret")
    assert str(raised.value).startswith("POSTHOUSE_ENDPOINTS: ")
    assert line in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
