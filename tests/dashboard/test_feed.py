"""The feed of a real system: nodes, edges, charts, problems; a broker that goes and comes."""

import contextlib
import json
import threading

import numpy as np
import pytest

from agentlace import TrainerClient, TrainerConfig, TrainerServer
from agentlace.codec.images import MARK, encode_image
from agentlace.config import BrokerURL
from agentlace.dashboard.cameras import FRAMES_MAX, SIDE_MAX, encoded, images
from agentlace.dashboard.feed import Feed, as_json
from agentlace.data import QueuedDataStore, RateLimiter, ReplayBuffer
from agentlace.errors import Closed, DecodeError
from agentlace.transport.embedded import EmbeddedBroker, Settings
from tests.ports import free_port
from tests.services.support import InThread, wait_until


@pytest.fixture
def feed(broker_url):
    feed = Feed(BrokerURL.parse(broker_url), every_s=0.2)
    feed.start()
    yield feed
    feed.stop()


def found(feed, condition, what):
    """Return the first state that fulfils a condition."""

    def looked():
        state = feed.state()
        return state if "nodes" in state and condition(state) else None

    return wait_until(looked, what=what)


def node(state, name):
    return next((node for node in state["nodes"] if node["name"] == name), None)


def rates_of(lane):
    return {
        (edge["from"].split()[0], edge["to"].split()[0]): edge["rate"] for edge in lane["edges"]
    }


@pytest.fixture
def system(broker_url):
    """A trainer that publishes, an actor that sends."""
    config, queue, stop = TrainerConfig(5555), QueuedDataStore(1000), threading.Event()
    with TrainerServer(config, broker=broker_url) as server:
        server.register_data_store("arm", ReplayBuffer(10_000))
        server.start(threaded=True)
        server.telemetry.report({"critic_loss": 0.5})
        client = TrainerClient("arm", "x", config, queue, broker=broker_url, actor_id="robot-1")
        client.recv_network_callback(lambda network: None)

        def act():
            while not stop.wait(0.02):
                queue.insert({"observations": np.zeros(3), "rewards": 1.0})
                client.update()
                if server.is_running:
                    with contextlib.suppress(Closed):
                        server.publish_network({"w": np.zeros(3)})

        thread = threading.Thread(target=act)
        thread.start()
        yield server, client
        stop.set()
        thread.join()
        client.stop()


def test_what_flows(feed, system):
    edges = {("group", "store"), ("store", "server"), ("server", "networks"), ("networks", "group")}

    def flows(state):
        told = rates_of(state["lanes"][0]) if state["lanes"] else {}
        return told.keys() >= edges and all(told[edge] for edge in edges)

    state = found(feed, flows, "rates on all edges")
    (lane,) = state["lanes"]
    assert lane["service"] == "trainer:5555"
    assert [box["title"] for box in lane["left"]] == ["actor"]
    assert [box["title"] for box in lane["middle"]][:2] == ["arm", "networks"]
    actor = node(state, "robot-1")
    assert actor["state"] == "ok" and actor["rate"] > 0 and actor["counted"] == "transitions"
    assert actor["policy"] > 0 and actor["policy_age_s"] >= 0 and actor["lost"] == 0
    assert state["problems"] == []
    charts = found(feed, lambda s: len(s["points"]) >= 4, "charts")["points"]
    assert set(charts) == {"transitions", "lag", "policy_age", "reported:critic_loss"}
    assert set(charts["transitions"]) == {"arm sent", "arm taken by trainer"}
    assert charts["reported:critic_loss"] == {"trainer:5555": 0.5}
    assert set(feed.history.told()["charts"]) == set(charts)


def test_problems(feed, system):
    server, _ = system
    found(feed, lambda s: node(s, "robot-1"), "the actor")
    limiter, ended = RateLimiter(min_size=100_000), threading.Event()
    learner = InThread(lambda: limiter.wait(server.data_store("arm"), 8, stopping=ended.is_set))
    state = found(feed, lambda s: s["problems"], "what the trainer waits for")
    (problem,) = state["problems"]
    assert (problem["level"], problem["who"]) == ("warning", "trainer:5555")
    assert "of 100,000 transitions inserted" in problem["text"]
    assert node(state, "trainer:5555")["state"] == "waits"
    ended.set()
    with pytest.raises(Closed):
        learner.result()
    server.stop()
    state = found(
        feed, lambda s: any("gone" in p["text"] for p in s["problems"]), "a trainer that is gone"
    )
    problem = next(p for p in state["problems"] if "gone" in p["text"])
    assert problem["level"] == "bad" and "1 of its clients" in problem["text"]
    assert node(state, "trainer:5555")["state"] == "gone"
    assert "leave" in {event["kind"] for event in state["events"]}


def test_who_is_subscribed_is_called_until_the_end(broker_url):
    feed, calls = Feed(BrokerURL.parse(broker_url), every_s=0.05), []
    end = feed.subscribe(lambda: calls.append(feed.is_stopped))
    feed.start()
    wait_until(lambda: len(calls) >= 3)
    assert feed.snapshot.namespace == feed.url.namespace
    feed.stop()
    assert calls[-1] is True and not any(calls[:-1])
    end()
    feed.stop()
    assert calls.count(True) == 1


def test_a_broker_that_comes_goes_and_comes_back():
    settings = Settings(port=free_port(), password="secret", maxmemory="64mb")
    url = BrokerURL.parse(f"redis://:secret@127.0.0.1:{settings.port}")
    feed = Feed(url, every_s=0.1)
    feed.start()
    try:
        state = wait_until(lambda: (told := feed.state())["away"] and told)
        assert f"127.0.0.1:{settings.port}" in state["away"]["text"]
        assert "nodes" not in state and feed.snapshot is None
        for _ in range(2):
            with EmbeddedBroker(settings):
                wait_until(lambda: not feed.state()["away"], what="the broker")
                assert feed.state()["nodes"] == [] and feed.snapshot is not None
            state = wait_until(lambda: (told := feed.state())["away"] and told)
            assert state["nodes"] == [] and feed.snapshot is None
        assert "secret" not in str(feed.state())
        texts = [event["text"] for event in feed.state()["events"]]
        assert texts.count("it is back") == 2
    finally:
        feed.stop()


def test_states_are_json_whatever_comes():
    told = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": None, "e": "é<"}}
    assert json.loads(as_json(told)) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None, "e": "é<"},
    }


# -- frames ----------------------------------------------------------------------------------------


def test_frames_are_found_wherever_they_are():
    rgb, grey = np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32, 1), np.uint8)
    stacked = np.stack([rgb, rgb + 9])
    tree = {
        "image": {"wrist": rgb, "front": [grey, stacked]},
        "state": np.zeros(7, np.float32),
        "depth": np.zeros((24, 32, 1), np.uint16),
        "small": np.zeros((2, 3, 3), np.uint8),
        "text": "image",
        "empty": np.zeros((0, 24, 32, 3), np.uint8),
    }
    seen = dict(images(tree))
    assert list(seen) == ["image/wrist", "image/front/0", "image/front/1"]
    assert [image.shape for image in seen.values()] == [(24, 32, 3), (24, 32, 1), (24, 32, 3)]
    assert seen["image/front/1"][0, 0, 0] == 9
    assert [name for name, _ in images(rgb)] == ["observation"]


def test_frames_that_travelled_encoded():
    cv2 = pytest.importorskip("cv2")
    rgb = np.full((24, 32, 3), (200, 30, 10), np.uint8)
    deep = np.zeros((24, 32), np.uint16)
    sent = [encode_image(rgb, "jpeg", 95), encode_image(rgb, "png"), encode_image(deep, "png")]
    large = encode_image(np.zeros((1000, 2000, 1), np.uint8), "jpeg")
    rgba = encode_image(np.zeros((1, 24, 32, 4), np.uint8), "png")
    seen = dict(images({"cameras": tuple(sent), "large": large, "rgba": rgba}))
    assert list(seen) == ["cameras/0", "cameras/1", "large", "rgba"]
    assert encoded(seen["cameras/0"]) == sent[0][-1].tobytes()  # as it came
    shapes = []
    for image in seen.values():
        shown = cv2.imdecode(np.frombuffer(encoded(image), np.uint8), cv2.IMREAD_COLOR)
        shapes.append(shown.shape[:2])
    assert shapes == [(24, 32), (24, 32), (SIDE_MAX // 2, SIDE_MAX), (24, 32)]
    with pytest.raises(DecodeError):
        list(images({"x": (MARK, "gif", "uint8", (1, 1), np.zeros(1, np.uint8))}))


def test_a_deep_tree_ends():
    tree = np.zeros((24, 32, 3), np.uint8)
    for _ in range(100):
        tree = {"x": tree}
    assert list(images(tree)) == []
    assert FRAMES_MAX > 1


def test_large_frames_are_made_smaller():
    cv2 = pytest.importorskip("cv2")
    for shape in [(1080, 1920, 3), (1080, 1920, 1), (8, 5000, 3)]:
        jpeg = encoded(np.zeros(shape, np.uint8))
        height, width = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        assert max(height, width) == SIDE_MAX
