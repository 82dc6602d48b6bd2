"""The query and the headers of a request: each parameter is known to its route, and is there once."""

from collections import Counter

from fastapi import Request
from fastapi.dependencies.models import Dependant

from api_app.service import invalid
from posthouse.control.submission import LONGEST_LOCATION
from posthouse.errors import InvalidRequest

SINGLE_HEADERS = ("Idempotency-Key", "Last-Event-ID")


async def checked_parameters(request: Request) -> None:
    """Raises InvalidRequest for a query parameter that the route does not know, and for what is there twice."""
    given = [name for name, _ in request.query_params.multi_items()]
    if given:
        _check_names(given, _known(request.scope["route"].dependant))
    places = [f"query.{name}" for name in given]
    for name in SINGLE_HEADERS:
        places += [f"header.{name}"] * len(request.headers.getlist(name))
    for place, count in Counter(places).items():
        if count > 1:
            raise invalid(place, "is there more than once")


def _known(dependant: Dependant) -> frozenset[str]:
    """The query parameters that a route takes, and what it depends on."""
    own = frozenset(field.alias for field in dependant.query_params)
    return own.union(*map(_known, dependant.dependencies))


def _check_names(given: list[str], known: frozenset[str]) -> None:
    """A filter that is misspelt would be no filter, and give everything."""
    unknown = [
        f"query.{name}"[:LONGEST_LOCATION] for name in dict.fromkeys(given) if name not in known
    ]
    if not unknown:
        return
    takes = f": {', '.join(sorted(known))}" if known else " none"
    message = f"there is no such parameter here; this route takes{takes}"
    raise InvalidRequest(
        f"{unknown[0]}: {message}",
        errors=tuple({"location": place, "message": message} for place in unknown),
    )
