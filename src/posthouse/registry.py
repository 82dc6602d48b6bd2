"""Libraries: packages whose modules hold one definition each; the built-ins use the same door as a user's."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TypeVar

from posthouse.errors import ConfigurationError

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def checked_name(kind: str, name: str) -> str:
    """The name itself. Raises ConfigurationError when it holds anything but letters, digits, _ and -."""
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(f"{kind} {name!r}: a name is 1-64 letters, digits, _ and -")
    return name


def discover(
    packages: Iterable[ModuleType], kind: type[T], key: Callable[[T], str]
) -> dict[str, T]:
    """Every instance of `kind` that the packages' modules define, by its key.

    Raises ConfigurationError when two have the same key or a module defines none.
    """
    found: dict[str, T] = {}
    for package in packages:
        for module in _modules(package):
            entries = [value for value in vars(module).values() if isinstance(value, kind)]
            if not entries:
                raise ConfigurationError(f"{module.__name__} defines no {kind.__name__}")
            for entry in entries:
                name = key(entry)
                if found.setdefault(name, entry) is not entry:
                    raise ConfigurationError(f"{kind.__name__} {name!r} is defined twice")
    return found


def _modules(package: ModuleType) -> Iterable[ModuleType]:
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        yield importlib.import_module(info.name)
