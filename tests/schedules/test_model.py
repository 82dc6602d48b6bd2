from datetime import UTC, datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest

from posthouse.errors import InvalidRequest
from posthouse.schedules.model import ON_TIME_MS, CatchUp, rule_of

MINUTE = 60_000
HOUR = 60 * MINUTE


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def local(slot: int, zone: str) -> str:
    return datetime.fromtimestamp(slot / 1000, ZoneInfo(zone)).strftime("%m-%d %H:%M%z")


def slots(cron: str, zone: str, after: str, count: int) -> list[str]:
    found = islice(rule_of(cron, zone).slots_after(ms(after)), count)
    return [local(slot, zone) for slot in found]


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["03-28 02:30+0100", "03-29 03:00+0200", "03-30 02:30+0200"]),
        ("30,45 2 * * *", ["03-28 02:30+0100", "03-28 02:45+0100", "03-29 03:00+0200"]),
        ("*/30 2 * * *", ["03-28 02:00+0100", "03-28 02:30+0100", "03-29 03:00+0200"]),
        ("0 2,3 * * *", ["03-28 02:00+0100", "03-28 03:00+0100", "03-29 03:00+0200"]),
        ("0 3 * * *", ["03-28 03:00+0100", "03-29 03:00+0200", "03-30 03:00+0200"]),
    ],
)
def test_a_time_that_the_clocks_skip_is_due_once_right_after(
    cron: str, expected: list[str]
) -> None:
    assert slots(cron, "Europe/Berlin", "2026-03-27T12:00:00+01:00", 3) == expected


@pytest.mark.parametrize("cron", ["30 2 * * *", "30 2 * * SUN,MON,SAT", "*/30 2 * * *"])
def test_a_time_that_comes_twice_is_due_once_the_first_time(cron: str) -> None:
    found = slots(cron, "Europe/Berlin", "2026-10-24T12:00:00+02:00", 4)
    assert [slot for slot in found if ":30" in slot][:2] == ["10-25 02:30+0200", "10-26 02:30+0100"]


def test_seen_from_the_hour_that_came_twice_the_first_one_is_over() -> None:
    rule = rule_of("30 2 * * *", "Europe/Berlin")
    again = ms("2026-10-25T02:10:00+01:00")
    assert local(rule.next_after(again), "Europe/Berlin") == "10-26 02:30+0100"


def test_every_hour_is_an_hour_that_passes() -> None:
    rule = rule_of("15 0-23 * * *", "Europe/Berlin")
    for day in ("2026-03-28T20:00:00+01:00", "2026-10-24T20:00:00+02:00"):
        found = list(islice(rule.slots_after(ms(day)), 12))
        assert {later - slot for slot, later in pairwise(found)} == {HOUR}


@pytest.mark.parametrize("cron", ["0 * * * *", "*/20 */3 * * *", "0 0 1 * *", "59 23 L * *"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/Havana", "Africa/Cairo"])
def test_each_slot_is_the_same_from_wherever_one_looks(cron: str, zone: str) -> None:
    rule = rule_of(cron, zone)
    walked = list(islice(rule.slots_after(ms("2026-02-27T12:34:56+00:00")), 40))
    assert walked == sorted(set(walked))
    assert [rule.next_after(slot - 1) for slot in walked] == walked
    assert [rule.next_after(slot) for slot in walked[:-1]] == walked[1:]


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("61 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("0 0 30 FEB *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * FUNDAY", "day of week"),
        ("*/0 * * * *", "minute"),
        ("*/61 * * * *", "minute"),
        ("1,2-9/61 * * * *", "minute"),
        ("0 */25 * * *", "hour"),
        ("0 0 */32 * *", "day of month"),
        ("0 0 1 */13 *", "month"),
        ("0 0 * * MON/8", "day of week"),
        ("* * * *", "five parts"),
        ("0 * * * * *", "five parts"),
        ("@daily", "five parts"),
        ("", "five parts"),
        ("1," * 60 + "1 * * * *", "100 characters"),
        ("0 0 */31 * MON#5", "no moment"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong(cron: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        rule_of(cron, "UTC")
    [error] = refused.value.errors
    assert error["location"] == "cron"
    assert said in error["message"]


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Berlin",
        "../UTC",
        "America",
        "/etc/localtime",
        "localtime",
        "Europe/Berlin\0",
        "right/UTC",
        "Right/Europe/Berlin",
        "posix/UTC",
        "posix/Europe/Berlin",
    ],
)
def test_a_wrong_zone_is_said_to_be_one(zone: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        rule_of("* * * * *", zone)
    assert refused.value.errors[0]["location"] == "time_zone"


def test_what_is_due_when_somebody_looks_in_time() -> None:
    rule = rule_of("*/5 * * * *", "UTC")
    slot = ms("2026-01-01T00:05:00+00:00")
    for catch_up in CatchUp:
        assert rule.due(slot, slot + 900, catch_up) == [slot]


def test_what_is_due_after_a_pause() -> None:
    rule = rule_of("*/5 * * * *", "UTC")
    since = ms("2026-01-01T00:05:00+00:00")
    now = since + 17 * MINUTE
    missed = [since + number * 5 * MINUTE for number in range(4)]
    assert rule.due(since, now, CatchUp.ALL) == missed
    assert rule.due(since, now, CatchUp.LAST) == missed[-1:]
    assert rule.due(since, now, CatchUp.NONE) == []
    assert rule.due(since, missed[-1] + ON_TIME_MS, CatchUp.NONE) == missed[-1:]


@pytest.mark.parametrize("cron", ["* * * * *", "0 * * * *", "0 0 * * *"])
def test_of_years_the_last_thousand_are_made_good(cron: str) -> None:
    rule = rule_of(cron, "Europe/Berlin")
    since = rule.next_after(ms("2016-01-01T00:00:00+00:00"))
    now = ms("2026-01-01T00:00:00+00:00")
    found = rule.due(since, now, CatchUp.ALL)
    assert len(found) == 1000
    assert found == list(islice(rule.slots_after(found[0] - 1), 1000))
    assert rule.next_after(found[-1]) > now
    assert rule.due(since, now, CatchUp.LAST) == found[-1:]


def test_a_rule_that_comes_every_few_decades() -> None:
    rule = rule_of("0 0 29 2 */7", "UTC")
    slot = rule.next_after(ms("2026-01-01T00:00:00+00:00"))
    assert datetime.fromtimestamp(slot / 1000, UTC).isoformat() == "2032-02-29T00:00:00+00:00"
