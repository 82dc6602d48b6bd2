"""The settings of a command: read as one, and looked over for names that are none."""

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from posthouse.errors import ConfigurationError
from posthouse.settings import Settings, problem_with

_OURS = "POSTHOUSE_"
# What the tests of this project are told has no effect on the service.
_FOR_TESTS = "POSTHOUSE_TEST_"


def load_settings() -> Settings:
    """The settings of the environment and `.env`. Raises ConfigurationError with one line."""
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError(problem_with(error)) from None


def given_names() -> set[str]:
    """Every name in the environment and in `.env`, in capitals, as letter case does not matter."""
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    return {name.upper() for source in sources for name in source.env_vars}


def unknown(names: Iterable[str]) -> list[str]:
    """A line for each name that looks like a setting and is none, with the closest one there is."""
    known = [str(field.validation_alias) for field in Settings.model_fields.values()]
    ours = {name for name in names if name.startswith(_OURS) and not name.startswith(_FOR_TESTS)}
    return [_line(name, known) for name in sorted(ours - set(known))]


def _line(name: str, known: list[str]) -> str:
    # Without the prefix that all share, which would make any two of them look close.
    bare = {setting.removeprefix(_OURS): setting for setting in known}
    close = get_close_matches(name.removeprefix(_OURS), bare, n=1, cutoff=0.5)
    meant = f"; did you mean {bare[close[0]]}?" if close else ""
    return f"{name} is not a setting and has no effect{meant}"
