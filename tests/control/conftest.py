"""A doctor, and the course of every cure."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import pytest
from redis.asyncio import Redis

from posthouse.control.doctor import Doctor, Kind

Found: TypeAlias = tuple[Kind, str, str]


@pytest.fixture
def doctor(redis: Redis) -> Doctor:
    return Doctor(redis, grace_seconds=0)


@pytest.fixture
def cured(doctor: Doctor) -> Callable[[Iterable[Found]], Awaitable[bool]]:
    async def cure(expected: Iterable[Found]) -> bool:
        """Whether nothing is found any more; asserts that just this was found, and each of it mended."""
        findings = await doctor.examine()
        assert {(one.kind, one.key, one.member) for one in findings} == set(expected)
        assert all(one.deed for one in await doctor.mend(findings))
        return await doctor.examine() == []

    return cure
