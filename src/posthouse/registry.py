"""Libraries: packages whose modules hold one definition each; the built-ins use the same door as a user's."""

import importlib
import importlib.util
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeAlias, TypeVar, get_args

from posthouse.errors import ConfigurationError

T = TypeVar("T")
Part: TypeAlias = Literal["workflows", "agents", "tools"]

_WHERE = "; Python looks in PYTHONPATH, in the current folder and among what is installed"
ENTRY_POINTS = "posthouse.libraries"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PACKAGE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)


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
    found = definitions(packages, kind)
    named = ((module, key(entry), entry) for module, entries in found for entry in entries)
    return by_name(kind.__name__.lower(), named)


def definitions(packages: Iterable[ModuleType], *kinds: type[T]) -> Iterator[tuple[str, list[T]]]:
    """The name of each module and its instances of the kinds; what begins with _ is private.

    Raises ConfigurationError when a module has none, or cannot be imported.
    """
    for package in packages:
        for module in _modules(package):
            entries = [
                value
                for name, value in vars(module).items()
                if isinstance(value, kinds) and not name.startswith("_")
            ]
            if not entries:
                wanted = " and no ".join(kind.__name__ for kind in kinds)
                raise ConfigurationError(f"{module.__name__} defines no {wanted}")
            yield module.__name__, entries


def by_name(word: str, found: Iterable[tuple[str, str, T]]) -> dict[str, T]:
    """The entries of (module, name, entry) by name; the same entry may come again, as an import.

    Raises ConfigurationError when two have one name.
    """
    modules: dict[str, str] = {}
    entries: dict[str, T] = {}
    for module, name, entry in found:
        if entries.setdefault(name, entry) is not entry:
            places = " and in ".join(dict.fromkeys((modules[name], module)))
            raise ConfigurationError(f"{word} {name!r} is defined twice: in {places}")
        modules.setdefault(name, module)
    return entries


def named_libraries(listed: str) -> tuple[str, ...]:
    """The packages of a comma-separated list, then those that installed distributions name, each once.

    Raises ConfigurationError when one is not the name of a package.
    """
    named = [("POSTHOUSE_LIBRARIES", name.strip()) for name in listed.split(",") if name.strip()]
    named += sorted(
        (f"entry point {entry.name!r} of {ENTRY_POINTS}", entry.value)
        for entry in entry_points(group=ENTRY_POINTS)
    )
    for source, name in named:
        if _PACKAGE.fullmatch(name) is None:
            raise ConfigurationError(f"{source}: {name[:80]!r} names no package")
    return tuple(dict.fromkeys(name for _, name in named))


def parts_of(libraries: Iterable[str], part: Part) -> list[ModuleType]:
    """The sub-packages so called, of the libraries that have one; nothing else of them is imported.

    Raises ConfigurationError when a library is not there, has no such part at all, or cannot be imported.
    """
    return [_sub_package(f"{name}.{part}") for name in libraries if part in _parts(name)]


def _parts(library: str) -> list[Part]:
    """Which parts a library has; imports the library itself, and none of them."""
    name = ""
    for word in library.split("."):
        name = f"{name}.{word}".lstrip(".")
        if importlib.util.find_spec(name) is None:
            looked = "" if "." in name else _WHERE
            raise ConfigurationError(f"library {library!r}: there is no package {name!r}{looked}")
        if not hasattr(_imported(name), "__path__"):
            raise ConfigurationError(f"library {library!r}: {name!r} is a module, not a package")
    parts = [part for part in get_args(Part) if importlib.util.find_spec(f"{library}.{part}")]
    if not parts:
        raise ConfigurationError(
            f"library {library!r}: it has none of the sub-packages {', '.join(get_args(Part))}"
        )
    return parts


def _sub_package(name: str) -> ModuleType:
    found = _imported(name)
    if not hasattr(found, "__path__"):
        raise ConfigurationError(f"{name} is a module; it must be a package, a definition a file")
    return found


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not info.name.rpartition(".")[2].startswith("_"):
            yield _imported(info.name)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error
    except Exception as error:
        raise ConfigurationError(f"{name} cannot be imported: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an import raised, and in which line of the code that was imported."""
    said = " ".join(str(error).split())[:200]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")
    ]
    last = frames[-1]
    # Of an error in the text of a module there is no frame of its own; its words say the place.
    if last.filename in (__file__, importlib.__file__):
        return what
    return f"{what} ({Path(last.filename).name}, line {last.lineno})"
