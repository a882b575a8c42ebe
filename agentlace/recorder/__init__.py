"""Records the streams of a trainer's stores as RLDS episodes, without actor or learner noticing.

::

    recorder.py     Recorder: follows the streams, commits data and positions together
    settings.py     how it works
    attendance.py   actors that are gone; whether all that there was is read
    watch.py        what the broker says of actors: there, gone, behind
    scribe.py       books and data of several stores, entered and committed
    sink.py         finished episodes → the dataset, or the quarantine
    ledger.py       the recorder's books ⇄ plain values that are committed with the data
    builder.py      one actor's transitions and marks → episodes
    boundaries.py   where an episode ends, as transitions tell it
    episodes.py     a finished episode, and how episodes are counted
    report.py       how it stands, and what became of all that was sent
    quarantine.py   files of episodes that do not fit their dataset
"""

from agentlace.recorder.episodes import Counts
from agentlace.recorder.quarantine import read_quarantined
from agentlace.recorder.recorder import Recorder
from agentlace.recorder.report import ActorStatus, Status
from agentlace.recorder.settings import Settings

__all__ = ["ActorStatus", "Counts", "Recorder", "Settings", "Status", "read_quarantined"]
