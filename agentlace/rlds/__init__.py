"""RLDS datasets on disk, as TFDS, Octo and Open-X loaders read them. No TensorFlow is needed.

::

    episode.py      one episode: N transitions ⇄ N+1 steps
    features.py     what a step holds, learned from spaces or from the first episode
    writer.py       DatasetWriter: append, commit with a cursor; a kill loses and doubles nothing
    reader.py       DatasetReader: episodes of a dataset, also of one that others wrote
    summary.py      lengths, returns and endings, without decoding images
    verify.py       what is wrong with a dataset, and where

    records.py, leaf.py, images.py, spaces.py   episodes → records
    tfrecord.py, crc32c.py                      records ⇄ files
    manifest.py, folder.py                      the commit
    joining.py, target.py                       small files are joined into few
    tfds.py                                     the only module that imports tensorflow_datasets

The package knows files and TFDS, and nothing of brokers or stores.
"""

from agentlace.rlds.episode import Episode, episode_from_transitions
from agentlace.rlds.features import Features
from agentlace.rlds.reader import DatasetReader
from agentlace.rlds.writer import Commit, DatasetWriter

__all__ = [
    "Commit",
    "DatasetReader",
    "DatasetWriter",
    "Episode",
    "Features",
    "episode_from_transitions",
]
