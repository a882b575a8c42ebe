"""Images of observations: encoded as the config says, decoded and resized when looked at."""

import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest

from agentlace.action import ActionClient, ActionConfig, ActionServer, Resize
from agentlace.config import BadSetting, check_same, described
from agentlace.errors import (
    AgentlaceError,
    ConfigMismatch,
    EncodeError,
    RemoteError,
    RequestTimeout,
    UnknownRequest,
)

from .support import Log, assert_same, wait_until

PLAIN = ActionConfig(5556, ["move"], ["camera", "arm", "depth", "pose"], broadcast_port=5557)
CODECS = {"camera": "jpeg:90", "arm/wrist": "png", "arm/gone": "png", "depth": "raw"}
CONFIG = dataclasses.replace(PLAIN, image_codecs=CODECS)

WRIST = np.random.default_rng(0).integers(0, 255, (1, 64, 48, 3), np.uint8)
DEPTH = np.random.default_rng(1).random((64, 48)).astype(np.float32)
CAMERA = np.zeros((120, 160, 3), np.uint8)
CAMERA[..., 0] = 200  # red
CAMERA[:, 80:, 2] = 120
OBSERVATION = {
    "camera": CAMERA,
    "arm": {"wrist": WRIST, "joints": np.arange(7.0)},
    "depth": DEPTH,
    "pose": (1.0, 2.0),
}


def look(keys):
    return {key: OBSERVATION[key] for key in keys}


@pytest.fixture
def serve(running, any_broker_url):
    def serve(obs=look, config=CONFIG):
        server = running(ActionServer(config, obs, lambda k, p: {"k": k}, broker=any_broker_url))
        server.start(threaded=True)
        return server

    return serve


@pytest.fixture
def connect(running, any_broker_url):
    def connect(config=CONFIG, **kwargs):
        return running(ActionClient("x", config, broker=any_broker_url, timeout_ms=5000, **kwargs))

    return connect


def check_observation(obs):
    assert isinstance(obs, dict) and set(obs) == set(OBSERVATION)
    camera = obs["camera"]
    assert type(camera) is np.ndarray and (camera.dtype, camera.shape) == (np.uint8, CAMERA.shape)
    assert np.abs(camera.astype(int) - CAMERA)[:, [20, 140]].max() <= 4
    assert_same(obs["arm"]["wrist"], WRIST)
    assert_same(obs["arm"]["joints"], OBSERVATION["arm"]["joints"])
    assert_same(obs["depth"], DEPTH)
    assert obs["pose"] == (1.0, 2.0)


def test_observations_arrive_as_they_were(serve, connect):
    server = serve()
    client = connect()
    for _ in range(3):
        check_observation(client.obs())
    assert set(client.obs({"pose"})) == {"pose"}
    assert type(OBSERVATION["camera"]) is np.ndarray  # the robot's own stays as it is
    assert server.image_times.keys() == client.image_times.keys() == {"camera", "arm/wrist"}


def test_broadcasts_arrive_as_they_were(serve, connect):
    server, client = serve(), connect()
    seen = Log()
    client.register_obs_callback(seen)
    client.watch_latest()
    assert server.publish_obs(OBSERVATION)
    check_observation(seen.wait()[0])
    check_observation(wait_until(client.latest).obs)
    check_observation(client.latest_obs())
    check_observation(connect().latest_obs())


def test_an_image_is_decoded_when_it_is_looked_at_and_what_it_costs_is_counted(serve, connect):
    server, client = serve(), connect()
    first, _ = client.obs(), client.obs()
    assert client.image_times == {}
    assert server.image_times["camera"].images == 2
    first["camera"].shape, first["camera"].mean()
    assert set(client.image_times) == {"camera"}
    mine, theirs = client.image_times["camera"], server.image_times["camera"]
    assert mine.images == 1 and mine.raw_bytes == CAMERA.nbytes
    assert 0 < mine.sent_bytes * 2 == theirs.sent_bytes
    assert mine.sent_bytes < CAMERA.nbytes / 20
    assert mine.seconds > 0 and theirs.seconds > 0
    for node, times in ((client, mine), (server, theirs)):
        told = {(s.name, s.labels.get("place")): s.value for s in node.telemetry.samples()}
        assert told["images_total", "camera"] == times.images
        assert told["image_seconds_total", "camera"] == times.seconds


def test_an_image_belongs_to_its_receiver(serve, connect):
    serve()
    client = connect()
    first = client.obs()
    first["camera"][:] = 7
    first["arm"]["wrist"][:] = 7
    assert (first["camera"] == 7).all()
    check_observation(client.obs())


@pytest.mark.parametrize(
    "wrong",
    [
        {"camera": CAMERA.astype(np.float32)},
        {"camera": [1, 2]},
        {"arm": {"wrist": WRIST.transpose(0, 3, 1, 2)}},
    ],
    ids=["float", "list", "channels first"],
)
def test_what_is_no_image_is_named(serve, connect, wrong):
    place = "camera" if "camera" in wrong else "arm/wrist"
    server, client = serve(obs=lambda keys: wrong), connect()
    assert client.obs() is None
    assert isinstance(client.last_error, RemoteError)
    for text in (place, "takes uint8", "raw"):
        assert text in str(client.last_error)
    with pytest.raises(EncodeError) as caught:
        server.publish_obs(wrong)
    assert caught.value.path == place


def test_a_camera_that_has_nothing_yet(serve, connect):
    serve(obs=lambda keys: {"camera": None, "arm": None})
    assert connect().obs() == {"camera": None, "arm": None}


# -- sizes -----------------------------------------------------------------------------------------


def test_sizes_of_one_call(serve, connect):
    serve()
    client = connect()
    sizes = {"camera": (24, 32), "arm/wrist": Resize(32, 32, pad=True), "depth": (8, 8)}
    obs = client.obs(resize=sizes)
    assert obs["camera"].shape == (24, 32, 3)
    assert np.abs(obs["camera"][:, [4, 28]].astype(int) - CAMERA[0, [20, 140]]).max() <= 4
    assert obs["arm"]["wrist"].shape == (1, 32, 32, 3)
    assert obs["arm"]["wrist"][:, :, 4:28].any() and not obs["arm"]["wrist"][:, :, :4].any()
    assert (obs["depth"].shape, obs["depth"].dtype) == ((8, 8), np.float32)
    check_observation(client.obs())


def test_sizes_of_a_client_are_for_all_that_it_receives(serve, connect):
    server, seen = serve(), Log()
    client = connect(resize={"camera": (12, 16), "arm/no": (1, 1)})
    assert client.obs()["camera"].shape == (12, 16, 3)
    assert client.obs(resize={"camera": (6, 8)})["camera"].shape == (6, 8, 3)
    assert "camera" not in client.obs({"pose"})
    client.register_obs_callback(seen)
    server.publish_obs(OBSERVATION)
    assert seen.wait()[0]["camera"].shape == (12, 16, 3)
    assert client.latest_obs()["camera"].shape == (12, 16, 3)
    assert wait_until(client.latest).obs["camera"].shape == (12, 16, 3)


def test_sizes_work_without_codecs(serve, connect):
    serve(config=PLAIN)
    obs = connect(PLAIN).obs(resize={"camera": (60, 80)})
    np.testing.assert_array_equal(obs["camera"], CAMERA[::2, ::2])


def test_sizes_that_cannot_be(serve, connect):
    serve()
    client = connect()
    with pytest.raises(UnknownRequest, match="camra"):
        client.obs(resize={"camra": (2, 2)})
    with pytest.raises(AgentlaceError, match="resize: pose"):
        client.obs(resize={"pose": (2, 2)})["pose"]
    for size in ((0, 5), (2.5, 2)):
        with pytest.raises(ValueError, match="camera"):
            client.obs(resize={"camera": size})


def test_no_observation_is_none_whatever_its_size_should_be(serve, connect):
    gate = threading.Event()
    serve(obs=lambda keys: gate.wait(20) and look(keys))
    client = connect()
    client.timeout_ms = 50
    assert client.obs(resize={"camera": (2, 2)}) is None
    assert isinstance(client.last_error, RequestTimeout)
    gate.set()


# -- configs ---------------------------------------------------------------------------------------

OF_EARLIER_VERSION = {
    "port_number": 5556,
    "action_keys": ["move"],
    "observation_keys": ["arm", "camera", "depth", "pose"],
    "broadcast_port": 5557,
    "version": "0.0.1",
}


@pytest.mark.parametrize("codecs", [{}, {"camera": "raw"}])
def test_a_config_without_codecs_is_that_of_earlier_versions(codecs):
    assert described(dataclasses.replace(PLAIN, image_codecs=codecs)) == OF_EARLIER_VERSION


def test_peers_of_earlier_versions_are_told_of_codecs():
    for mine, theirs in (
        (described(CONFIG), OF_EARLIER_VERSION),
        (OF_EARLIER_VERSION, described(CONFIG)),
    ):
        with pytest.raises(ConfigMismatch) as caught:
            check_same(mine, theirs)
        assert caught.value.field == "image_codecs"


def test_codecs_are_compared_by_what_they_do():
    same = {"arm/gone": "png", "arm/wrist": "png", "camera": "jpeg:90"}
    check_same(described(CONFIG), described(dataclasses.replace(PLAIN, image_codecs=same)))
    default, named = (
        dataclasses.replace(PLAIN, image_codecs={"camera": codec}) for codec in ("jpeg", "jpeg:95")
    )
    check_same(described(default), described(named))


def test_both_ends_must_have_the_same(serve, connect):
    serve()
    other = dataclasses.replace(CONFIG, image_codecs=CODECS | {"camera": "jpeg:50"})
    for config in (other, PLAIN):
        with pytest.raises(ConfigMismatch, match="image_codecs"):
            connect(config)


@pytest.mark.parametrize(
    "codec", ["gif", "jpeg:0", "jpeg:101", "jpeg:", "jpeg:x", "png:3", 85, None]
)
def test_there_is_no_such_codec(codec):
    config = ActionConfig(1, [], ["camera"], image_codecs={"camera": codec})
    for make in (lambda: ActionServer(config, None, None), lambda: ActionClient("x", config)):
        with pytest.raises(BadSetting, match=r"image_codecs.*jpeg:85"):
            make()


WITHOUT_OPENCV = """
import sys
sys.modules["cv2"] = None
import agentlace
from agentlace import ActionClient, ActionConfig, ActionServer, MissingExtra
plain = ActionConfig(1, [], ["camera"])
coded = ActionConfig(1, [], ["camera"], image_codecs={"camera": "png"})
ActionServer(plain, None, None)
for make in (
    lambda: ActionServer(coded, None, None),
    lambda: ActionClient("x", coded),
    lambda: ActionClient("x", plain, resize={"camera": (2, 2)}),
):
    try:
        make()
    except MissingExtra as error:
        assert "agentlace[image]" in str(error), error
    else:
        raise AssertionError
"""


def test_without_opencv_one_is_told_what_to_install():
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPENCV], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
