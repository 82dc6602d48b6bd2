"""`python -m api_app` serves until SIGTERM or SIGINT; a wrong setting or a Redis unfit for runs ends it with code 2."""

import asyncio
import signal
import sys

from pydantic import ValidationError

from api_app.main import create_app
from api_app.server import make_server
from posthouse.errors import ConfigurationError
from posthouse.logs import configure_logs
from posthouse.settings import Settings, problem_with
from posthouse.storage.fitness import require_fit


def main() -> int:
    """The exit code."""
    # uvicorn raises the signal again when it has stopped; that is a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = Settings()
        configure_logs(settings.log_level, process="api")
        app = create_app(settings)
        asyncio.run(require_fit(settings.redis_url, unsafe=settings.unsafe_redis))
    except ValidationError as error:
        print(f"posthouse: {problem_with(error)}", file=sys.stderr)  # noqa: T201 - logs are not set up
        return 2
    except ConfigurationError as error:
        print(f"posthouse: {error}", file=sys.stderr)  # noqa: T201 - a person is looking
        return 2
    make_server(app, settings.host, settings.port).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
