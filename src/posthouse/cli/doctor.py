"""`posthouse doctor`: what in Redis outlived its run or got lost, a line each, and mended if so wanted."""

import sys
from collections.abc import Sequence

from posthouse.cli.words import clean, count
from posthouse.control.doctor import Doctor, Finding, Treated
from posthouse.embedded.joining import without_secrets
from posthouse.embedded.preflight import examine
from posthouse.errors import ConfigurationError, StorageUnavailable
from posthouse.settings import Settings
from posthouse.storage.connect import connect

FINDINGS_LEFT = 1


async def doctor(settings: Settings, *, fix: bool) -> int:
    """The exit code: 0 when nothing is amiss, or no longer.

    Raises ConfigurationError when no Redis is set, or it is away.
    """
    if "redis_url" not in settings.model_fields_set or not settings.redis_url:
        raise ConfigurationError("REDIS_URL is not set: it says which Redis to look at")
    name = without_secrets(settings.redis_url)
    for warning in await examine(settings.redis_url, name, unsafe=True):
        print(f"posthouse: {warning}", file=sys.stderr)
    async with connect(settings.redis_url, max_connections=2) as redis:
        try:
            return await _visit(Doctor(redis), fix)
        except StorageUnavailable as error:
            raise ConfigurationError(f"Redis at {name} cannot be looked at: {error}") from None


async def _visit(doctor: Doctor, fix: bool) -> int:
    findings = await doctor.examine()
    treated = await doctor.mend(findings) if fix else [Treated(found, "") for found in findings]
    for line in _lines(treated):
        print(line)
    left = sum(not one.deed for one in treated)
    mended = f", {len(treated) - left} mended" if fix and treated else ""
    print(f"{count(len(treated), 'finding')}{mended}")
    return FINDINGS_LEFT if left else 0


def _lines(treated: Sequence[Treated]) -> list[str]:
    return [f"{_line(one.finding)}{f': {one.deed}' if one.deed else ''}" for one in treated]


def _line(finding: Finding) -> str:
    return clean(" ".join(filter(None, (finding.kind, finding.key, finding.member))))
