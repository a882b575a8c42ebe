"""Passwords, sessions and wrong attempts, with a clock of the test's own."""

import pytest

from agentlace.config import BadSetting
from agentlace.dashboard.auth import (
    ADDRESSES_MAX,
    ADMIN,
    FREE_ATTEMPTS,
    PAUSE_MAX_S,
    SESSION_S,
    VIEWER,
    Attempts,
    Passwords,
    Sessions,
)

BOTH = Passwords("look", "push")


class Clock:
    def __init__(self):
        self.now_s = 1e9

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    ("typed", "role"),
    [("look", VIEWER), ("push", ADMIN), ("", None), ("look ", None), ("pu\x00sh", None)],
)
def test_a_password_gives_a_role(typed, role):
    assert BOTH.role_of(typed) == role


@pytest.mark.parametrize("typed", ["", "None", "x"])
def test_no_password_is_nobodys(typed):
    assert Passwords().role_of(typed) is None


def test_passwords_are_never_shown():
    assert "look" not in repr(BOTH) and "push" not in repr(BOTH)


def test_the_same_password_for_both_is_refused():
    with pytest.raises(BadSetting, match="choose another one") as caught:
        Passwords("same", "same")
    assert "'same'" not in str(caught.value)


def test_a_session_ends():
    clock = Clock()
    sessions = Sessions(BOTH, clock)
    cookie = sessions.new(ADMIN)
    assert sessions.role_of(cookie) == ADMIN
    clock.now_s += SESSION_S - 1
    assert sessions.role_of(cookie) == ADMIN
    clock.now_s += 2
    assert sessions.role_of(cookie) is None


def test_a_cookie_that_was_made_up_is_worth_nothing():
    sessions = Sessions(BOTH)
    cookie = sessions.new(VIEWER)
    text, _, signature = cookie.rpartition(".")
    made_up = [
        *(None, "", ".", "admin", f"{text}.", f".{signature}", "admin.9e99.x." + signature),
        *(cookie.replace(VIEWER, ADMIN), cookie + "0", Sessions(BOTH).new(ADMIN), "é.é.é.é"),
    ]
    assert [sessions.role_of(each) for each in made_up] == [None] * len(made_up)
    assert sessions.role_of(cookie) == VIEWER


def test_without_a_viewers_password_everybody_may_look():
    sessions = Sessions(Passwords(None, "push"))
    assert sessions.role_of(None) == VIEWER
    assert sessions.role_of("made.up.admin") == VIEWER
    assert sessions.role_of(sessions.new(ADMIN)) == ADMIN


def test_wrong_attempts_cost_more_and_more():
    clock = Clock()
    attempts, waits = Attempts(clock), []
    for _ in range(FREE_ATTEMPTS + 8):
        attempts.note("10.0.0.1", is_right=False)
        waits.append(attempts.wait_s("10.0.0.1"))
        clock.now_s += waits[-1]
    assert waits[: FREE_ATTEMPTS - 1] == [0.0] * (FREE_ATTEMPTS - 1)
    costly = waits[FREE_ATTEMPTS - 1 :]
    assert costly[:4] == [1.0, 2.0, 4.0, 8.0] and costly[-1] == PAUSE_MAX_S
    assert attempts.wait_s("10.0.0.2") == 0.0
    attempts.note("10.0.0.1", is_right=True)
    attempts.note("10.0.0.1", is_right=False)
    assert attempts.wait_s("10.0.0.1") == 0.0


def test_one_network_of_ipv6_is_one_address():
    attempts = Attempts(Clock())
    for number in range(FREE_ATTEMPTS):
        attempts.note(f"2001:db8::{number}", is_right=False)
    assert attempts.wait_s("2001:db8::ffff") > 0
    assert attempts.wait_s("2001:db8:0:1::1") == 0


def test_what_is_known_of_addresses_is_bounded():
    attempts = Attempts(Clock())
    for number in range(ADDRESSES_MAX + 50):
        attempts.note(f"10.0.{number // 256}.{number % 256}", is_right=False)
    assert len(attempts._wrong) == ADDRESSES_MAX
