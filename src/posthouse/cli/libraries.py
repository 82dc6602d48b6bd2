"""Libraries of one's own, looked at by the command before anything starts."""

import os
import sys

from posthouse.engine.libraries import stock_of
from posthouse.registry import named_libraries


def check_libraries(listed: str) -> None:
    """Finds and imports them as the processes will. Raises ConfigurationError with one line."""
    libraries = named_libraries(listed)
    if not libraries:
        return
    # `python -m` looks in the folder where it is started, an installed command does not.
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    stock_of(libraries)
