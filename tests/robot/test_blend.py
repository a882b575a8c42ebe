import numpy as np
import pytest

from agentlace.errors import SchemaMismatch
from agentlace.robot import Latest, TemporalEnsemble, WeightedAverage
from agentlace.robot.plan import ActionPlan

ACTIONS = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 8.0]], np.float32)
AGES = np.array([0, 4, 9])


def test_latest():
    assert Latest()(ACTIONS, AGES).tolist() == [1, 0]


def test_weighted_average():
    assert WeightedAverage(0)(ACTIONS, AGES) == pytest.approx(ACTIONS.mean(0))
    weights = np.exp(-0.5 * AGES)
    expected = (weights[:, None] * ACTIONS).sum(0) / weights.sum()
    found = WeightedAverage(0.5)(ACTIONS, AGES)
    assert found == pytest.approx(expected) and found.dtype == np.float32
    assert WeightedAverage(1e6)(ACTIONS, AGES + 1000) == pytest.approx(ACTIONS[0])


def test_temporal_ensemble():
    weights = np.exp(-0.5 * np.array([2, 1, 0]))  # the oldest weighs most
    expected = (weights[:, None] * ACTIONS).sum(0) / weights.sum()
    assert TemporalEnsemble(0.5)(ACTIONS, AGES) == pytest.approx(expected)
    assert TemporalEnsemble(0)(ACTIONS, AGES) == pytest.approx(ACTIONS.mean(0))


@pytest.mark.parametrize("make", [WeightedAverage, TemporalEnsemble])
@pytest.mark.parametrize("bad", [-1, float("nan")])
def test_wrong_arguments(make, bad):
    with pytest.raises(ValueError, match="negative"):
        make(bad)


def test_a_plan_of_trees():
    plan = ActionPlan(WeightedAverage(0))
    plan.add(0, {"arm": np.zeros((4, 3)), "grip": np.arange(4)})
    plan.add(2, {"arm": np.ones((4, 3)), "grip": np.arange(10, 14)})
    assert plan.end == 6
    assert plan.at(1)["grip"] == 1
    both = plan.at(3)
    assert both["arm"].tolist() == [0.5] * 3 and both["grip"] == (3 + 11) // 2
    assert plan.at(5)["grip"] == 13 and plan.at(6) is None
    plan.add(4, {"arm": np.ones((4, 3)), "grip": np.arange(4)})
    assert plan.at(7)["grip"] == 3


def test_a_late_chunk_does_not_replace_a_newer_one():
    plan = ActionPlan(Latest())
    plan.add(5, np.full(10, 5))
    plan.add(2, np.full(10, 2))
    assert plan.at(7) == 5


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (np.zeros(()), "of shape"),
        (np.zeros((0, 2)), "of shape"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, "of shape"),
        ({"c": np.zeros((3, 2))}, "not in all"),
        (np.zeros((3, 7)), "shape"),
        ("nonsense", "of shape"),
    ],
)
def test_what_is_no_chunk(bad, text):
    plan = ActionPlan(Latest())
    plan.add(0, np.zeros((3, 2)))
    with pytest.raises(SchemaMismatch, match=text):
        plan.add(1, bad)
    assert plan.end == 3
