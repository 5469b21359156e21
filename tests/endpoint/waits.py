"""Waiting for a state, with a limit."""

import time


class TimedOut(AssertionError):
    """A state did not come within its limit."""


def until(what, check, limit, pause=0.2):
    """Calls `check` until it returns `(True, value)` and returns the value.

    `check` returns `(False, seen)` while the state is not there; `seen` is what the error shows when `limit`
    seconds have passed. Exceptions of `check` pass through. Returns at once when the state is there already.
    """
    give_up = time.monotonic() + limit
    while True:
        done, seen = check()
        if done:
            return seen
        if time.monotonic() > give_up:
            raise TimedOut(f"{what}: not within {limit:.0f} s; last seen: {seen}")
        time.sleep(pause)
