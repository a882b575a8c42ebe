"""Records the streams of a trainer's stores as RLDS episodes, without actor or learner noticing.

::

    recorder.py     Recorder: follows the streams, commits data and positions together
    watch.py        what the broker says of actors: gone, done, behind
    sink.py         finished episodes → the dataset, or the quarantine
    ledger.py       the recorder's books ⇄ plain values that are committed with the data
    builder.py      one actor's transitions and marks → episodes
    boundaries.py   where an episode ends, as transitions tell it
    episodes.py     a finished episode, and how episodes are counted
    quarantine.py   files of episodes that do not fit their dataset
"""
