"""`python -m worker_app`: one worker process."""

import sys

from pydantic import ValidationError

from posthouse.errors import ConfigurationError
from posthouse.settings import Settings, problem_with
from worker_app.main import run


def main() -> int:
    """Exit code 0 after a clean stop, 2 when a setting is wrong or Redis may lose runs."""
    try:
        run(Settings())
    except ValidationError as error:
        print(f"posthouse: {problem_with(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except ConfigurationError as error:
        print(f"posthouse: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
