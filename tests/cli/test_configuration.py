"""The settings of a command, and names that look like settings and are none."""

from pathlib import Path

import pytest

from posthouse.cli.configuration import given_names, load_settings, unknown
from posthouse.errors import ConfigurationError
from posthouse.settings import Settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("POSTHOUSE_PORTT", "; did you mean POSTHOUSE_PORT?"),
        ("POSTHOUSE_REDIS_URL", "; did you mean REDIS_URL?"),
        ("POSTHOUSE_LEASE", "; did you mean POSTHOUSE_LEASE_SECONDS?"),
        ("POSTHOUSE_QQ", ""),
    ],
)
def test_an_unknown_name_is_said_with_the_closest_one(name: str, meant: str) -> None:
    assert unknown([name]) == [f"{name} is not a setting and has no effect{meant}"]


def test_every_setting_is_known_and_what_is_not_ours_is_no_matter() -> None:
    names = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert unknown([*names, "PATH", "OPENAI_ORG", "POSTHOUSE_TEST_REDIS_URL"]) == []


def test_names_come_from_the_environment_and_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("posthouse_hosst", "h")
    (tmp_path / ".env").write_text("#POSTHOUSE_OFF=1\nPOSTHOUSE_PORTT=1\n")
    ours = {name for name in given_names() if name.startswith("POSTHOUSE_")}
    assert ours - {"POSTHOUSE_TEST_REDIS_URL"} == {"POSTHOUSE_HOSST", "POSTHOUSE_PORTT"}


def test_every_wrong_setting_is_named_in_one_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTHOUSE_PORT", "99999")
    monkeypatch.setenv("POSTHOUSE_WORKERS", "0")
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert str(refused.value) == (
        "POSTHOUSE_PORT: Input should be less than or equal to 65535; "
        "POSTHOUSE_WORKERS: Input should be greater than or equal to 1"
    )
