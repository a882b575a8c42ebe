"""A bounded number of points and series."""

import math

from agentlace.dashboard.history import History, rounded


def test_points_and_gaps():
    history = History(points=10)
    history.add(1.0, {("rates", "a"): 1.0})
    history.add(2.0, {("rates", "a"): 2.0, ("rates", "b"): 0.25})
    history.add(3.0, {("rates", "b"): math.nan})
    told = history.told()
    assert told["at"] == [1.0, 2.0, 3.0]
    assert told["charts"] == {"rates": {"a": [1.0, 2.0, None], "b": [None, 0.25, None]}}


def test_only_the_newest_points_stay():
    history = History(points=5)
    for number in range(12):
        history.add(float(number), {("c", "a"): float(number)})
    told = history.told()
    assert told["at"] == told["charts"]["c"]["a"] == [7.0, 8.0, 9.0, 10.0, 11.0]


def test_a_series_that_has_ended_goes_when_all_its_points_have():
    history = History(points=5)
    history.add(0.0, {("c", "gone"): 1.0})
    for number in range(1, 5):
        history.add(float(number), {("c", "a"): 1.0})
    assert "gone" in history.told()["charts"]["c"]
    history.add(5.0, {("c", "a"): 1.0})
    assert "gone" not in history.told()["charts"]["c"]


def test_memory_is_bounded():
    history = History(points=100, series_max=8)
    for number in range(100):
        history.add(float(number), {("c", f"actor {number}"): 1.0, ("c", "stays"): 2.0})
    labels = history.told()["charts"]["c"]
    assert len(labels) == 8 and "stays" in labels and "actor 99" in labels
    assert history.nbytes <= 100 * 8 + 8 * 100 * 4


def test_half_an_hour_of_a_large_system_is_a_few_megabytes():
    history = History()
    history.add(0.0, {("c", str(number)): 1.0 for number in range(1000)})
    assert history.nbytes < 2 << 20


def test_few_digits():
    assert rounded(1 / 3) == 0.33333
    assert rounded(1234567.0) == 1234600.0
    assert [rounded(value) for value in (None, math.nan, math.inf)] == [None] * 3
