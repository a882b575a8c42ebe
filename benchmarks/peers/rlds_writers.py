"""Episodes written as RLDS: by ours, by TFDS' SequentialWriter, and by ours until they are many."""

import tempfile
import time

import numpy as np

from agentlace.rlds.episode import episode_from_transitions
from agentlace.rlds.features import Features
from agentlace.rlds.writer import DatasetWriter
from benchmarks import payloads, worker

EPISODES = 4
"""Different ones, which are written again and again."""
SMALL_STEPS, SMALL_STATE = 20, 40
EVERY = 50
"""Episodes a commit while a dataset is only being filled."""


def _episodes(steps, image_format="png"):
    rows = payloads.camera_rows(EPISODES * steps)
    parts = [rows[i * steps : (i + 1) * steps] for i in range(EPISODES)]
    found = [episode_from_transitions(part, "truncated") for part in parts]
    return found, Features.from_episode(found[0], image_format)


def _rate(write, episodes, n):
    """Return steps per second of n episodes that are written one after the other."""
    start, steps = time.perf_counter(), 0
    for number in range(n):
        episode = episodes[number % EPISODES]
        write(episode)
        steps += len(episode)
    return [steps / (time.perf_counter() - start)]


def ours(folder, steps, image_format):
    """Write with a commit for each episode: it is on the disk when the next begins."""
    episodes, features = _episodes(steps, image_format)
    writer = DatasetWriter(folder, "ours", features=features)

    def write(episode):
        writer.append(episode)
        writer.commit()

    worker.serve(write=lambda n: _rate(write, episodes, n))


def sequential(folder, steps, image_format, opencv):
    """Write with SequentialWriter, which has TensorFlow encode, or is given what OpenCV encoded."""
    import tensorflow_datasets as tfds

    from agentlace.rlds.images import encode_image
    from agentlace.rlds.tfds import tfds_features

    episodes, features = _episodes(steps, image_format)
    directory = tempfile.mkdtemp(dir=folder)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="theirs", version=tfds.core.Version("1.0.0"), data_dir=directory, module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds_features(features))
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000)
    writer.initialize_splits(["train"])

    def prepared(step):
        observation = step["observation"]
        if opencv:
            frames = {k: encode_image(v, image_format) for k, v in observation.items()}
            return {**step, "observation": frames}
        return step

    def write(episode):
        steps = [prepared(step) for step in episode.steps]
        metadata = {"ending": episode.ending, "other": "{}"}
        writer.add_examples({"train": [{"steps": steps, "episode_metadata": metadata}]})

    worker.serve(write=lambda n: _rate(write, episodes, n))


def many(folder, shard_nbytes):
    """Let a dataset of small episodes grow, and time commits of one episode each."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "observations": rng.normal(size=SMALL_STATE).astype(np.float32),
            "actions": rng.normal(size=6).astype(np.float32),
            "next_observations": rng.normal(size=SMALL_STATE).astype(np.float32),
            "rewards": np.float32(i),
        }
        for i in range(SMALL_STEPS)
    ]
    episode = episode_from_transitions(rows, "truncated")
    writer = DatasetWriter(folder, "many", shard_nbytes=shard_nbytes)

    def grow(total):
        while writer.episodes < total:
            for _ in range(min(EVERY, total - writer.episodes)):
                writer.append(episode)
            writer.commit({"next": writer.episodes})

    def commits(n):
        durations = []
        for number in range(n):
            writer.append(episode)
            start = time.perf_counter()
            writer.commit({"commit": number})
            durations.append((time.perf_counter() - start) * 1000)
        return durations

    worker.serve(grow=grow, commits=commits)


if __name__ == "__main__":
    worker.main(ours=ours, sequential=sequential, many=many)
