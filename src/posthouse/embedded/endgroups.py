"""Ends the process groups that standard input names, when that input ends; runs alone."""

import os
import signal
import sys
from collections.abc import Iterable


def watch(lines: Iterable[bytes]) -> set[int]:
    """The groups that are alive when the input ends: `12` adds one, `-12` takes it out again."""
    groups: set[int] = set()
    for line in lines:
        number = int(line)
        if number > 0:
            groups.add(number)
        else:
            groups.discard(-number)
    return groups


def end(groups: Iterable[int]) -> None:
    """SIGKILL to every group; one that is gone already is no matter."""
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    # The input ends when every holder of its other end is gone, however it went.
    # Nothing else ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end(watch(sys.stdin.buffer))
