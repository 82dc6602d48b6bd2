"""The lock of a data folder."""

import os
from pathlib import Path

import pytest

from posthouse.embedded.lock import data_folder
from posthouse.errors import ConfigurationError


def test_a_second_stack_is_told_who_has_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    words = rf"in use by another posthouse \(process {os.getpid()}\).*POSTHOUSE_DATA_DIR"
    with data_folder(folder), pytest.raises(ConfigurationError, match=words):
        data_folder(folder).__enter__()
    with data_folder(folder):
        pass


def test_the_lock_holds_while_somebody_inherited_it(tmp_path: Path) -> None:
    with data_folder(tmp_path) as lock:
        inherited = os.dup(lock)
    with pytest.raises(ConfigurationError, match="in use"):
        data_folder(tmp_path).__enter__()
    os.close(inherited)
    with data_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"POSTHOUSE_DATA_DIR: cannot use .*file/data"):
        data_folder(tmp_path / "file" / "data").__enter__()
