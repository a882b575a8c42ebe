"""Robots that keep moving while a policy elsewhere thinks.

::

    policy.py     the control loop's end: an action for each tick, chunks asked for in between
    schedule.py   when to ask for the next chunk, from measured latency
    plan.py       action chunks by tick
    blend.py      what to do where chunks overlap
"""

from agentlace.robot.blend import Blend, Latest, TemporalEnsemble, WeightedAverage
from agentlace.robot.policy import ChunkedPolicyClient

__all__ = ["Blend", "ChunkedPolicyClient", "Latest", "TemporalEnsemble", "WeightedAverage"]
