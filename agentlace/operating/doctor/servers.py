"""The server: its version, memory, buffers and disk, its clock, and how far away it is."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator

from agentlace.operating.brokers import version_in
from agentlace.operating.doctor.findings import Finding, fail, ok, skip, warn
from agentlace.operating.doctor.patient import Patient
from agentlace.wording import size

OLDEST = (6, 2)
WITH_ROLES = (7, 0)
"""The first Redis that knows the rules of broker/users.acl."""
NEARLY_FULL = 0.9
LEAST_PUBSUB_BYTES = 1 << 20
"""With less, a subscriber is cut off that takes a breath: sixteen small observations."""
PUBSUB = "pubsub 256mb 128mb 60"
PUBSUB_BYTES = (256 << 20, 128 << 20)
"""What broker/redis.conf gives subscribers: at once, and for a minute."""
MAX_OFFSET_S = 1.0
TRIPS = 20
TRIPS_S = 2.0
SLOW_S = 0.02
_UNTOLD = "the user may not ask the broker (INFO)"


def version(patient: Patient) -> Iterator[Finding]:
    """Compare the server's version with what is needed."""
    for where, _, told in patient.infos:
        name = version_in(told)
        if not name:
            yield skip(f"{where}{_UNTOLD}")
            continue
        number = tuple(int(part) for part in re.findall(r"\d+", name)[:2])
        if name.startswith("valkey") or number >= WITH_ROLES:
            yield ok(f"{where}{name}")
        elif number >= OLDEST:
            todo = "install Redis 7 or Valkey there, or let `agentlace broker` bring its own"
            yield warn(f"{where}{name} works, but knows no users with roles", todo)
        else:
            todo = "install Redis 7 or Valkey there, or let `agentlace broker` bring its own"
            yield fail(f"{where}{name} is older than 6.2, the oldest that works", todo)


def memory(patient: Patient) -> Iterator[Finding]:
    """Look at the limit of the memory, at what happens there, and at how near that is."""
    for where, _, told in patient.infos:
        if "maxmemory" not in told:
            yield skip(f"{where}{_UNTOLD}")
            continue
        limit, used = int(told["maxmemory"]), int(told.get("used_memory", 0))
        policy = told.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            yield fail(
                f"{where}maxmemory-policy is {policy}: a broker that is full throws whole streams "
                "and networks away",
                patient.to_set("maxmemory-policy", "noeviction"),
            )
        if not limit:
            yield warn(
                f"{where}maxmemory is 0: streams that nobody reads may fill the whole machine",
                patient.to_set("maxmemory", "4gb"),
            )
        elif used >= NEARLY_FULL * limit:
            todo = "see `agentlace consumers` for who is slow, or "
            yield warn(
                f"{where}{size(used)} of {size(limit)} are used: soon nobody can write",
                todo + patient.to_set("maxmemory", f"{2 * limit >> 20}mb"),
            )
        elif policy == "noeviction":
            yield ok(f"{where}{size(used)} of {size(limit)} are used, noeviction")


def buffers(patient: Patient) -> Iterator[Finding]:
    """Look at how far a subscriber may lag until it is cut off."""
    for where, channel, told in patient.infos:
        setting = patient.settings(channel, "client-output-buffer-limit")
        found = re.search(r"pubsub (\d+) (\d+) (\d+)", setting or "")
        if found is None:
            cut = int(told.get("client_output_buffer_limit_disconnections", 0))
            if cut:
                todo = patient.to_set("client-output-buffer-limit", PUBSUB)
                yield warn(f"{where}{cut} clients were cut off since they read too slowly", todo)
            else:
                yield skip(f"{where}the user may not ask for settings (CONFIG GET)")
            continue
        yield _buffered(patient, where, *(int(part) for part in found.groups()))


def _buffered(patient: Patient, where: str, hard: int, soft: int, seconds: int) -> Finding:
    todo = patient.to_set("client-output-buffer-limit", PUBSUB)
    said = f"{where}a subscriber may lag {_bound(hard)}, or {_bound(soft)} for {seconds} s"
    if hard == 0:
        todo = f"bound it: {todo}"
        return warn(f"{said}: one that is stopped can fill the broker", todo)
    least = min(bound for bound in (hard, soft) if bound)
    if least < LEAST_PUBSUB_BYTES:
        return fail(f"{said}: watchers of observations and networks are cut off", todo)
    if hard < PUBSUB_BYTES[0] or 0 < soft < PUBSUB_BYTES[1]:
        return warn(f"{said}: a watcher of a camera that stalls for seconds is cut off", todo)
    return ok(said)


def persistence(patient: Patient) -> Iterator[Finding]:
    """Look at what of the data would come back after a crash."""
    for where, channel, told in patient.infos:
        if "aof_enabled" not in told:
            yield skip(f"{where}{_UNTOLD}")
        elif told.get("aof_last_write_status", "ok") != "ok":
            yield fail(
                f"{where}the log could not be written: what is sent now is lost by a crash",
                "make room on the broker's disk (df -h), and see the broker's log",
            )
        elif told["aof_enabled"] == "0":
            yield warn(
                f"{where}nothing is kept on disk: transitions that are not read yet are lost when "
                "the broker ends",
                f"agentlace broker --dir DIR; or {patient.to_set('appendonly', 'yes')}",
            )
        elif told.get("aof_last_bgrewrite_status", "ok") != "ok":
            yield warn(
                f"{where}the log could not be rewritten: it grows without end",
                "make room on the broker's disk (df -h), set vm.overcommit_memory=1 there, and "
                "see the broker's log",
            )
        else:
            fsync = patient.settings(channel, "appendfsync")
            yield ok(f"{where}a log is written{f', to disk: {fsync}' if fsync else ''}")


def clock(patient: Patient) -> Iterator[Finding]:
    """Compare this machine's clock with the broker's."""
    samples = []
    for _ in range(5):
        before = time.monotonic()
        here_s = patient.now_s()
        seconds, micros = patient.channel.call("TIME")
        trip_s = time.monotonic() - before
        samples.append((trip_s, here_s + trip_s / 2 - int(seconds) - int(micros) / 1e6))
    trip_s, ahead_s = min(samples)
    if abs(ahead_s) - trip_s / 2 <= MAX_OFFSET_S:
        yield ok(f"{1000 * abs(ahead_s):.0f} ms apart, to within {1000 * trip_s / 2:.1f} ms")
        return
    yield warn(
        f"this machine's clock is {abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} "
        "the broker's: deadlines hold all the same, but logs, recordings and certificates go by "
        "it",
        "timedatectl set-ntp true, on the machine whose clock is wrong (see `date`)",
    )


def round_trip(patient: Patient) -> Iterator[Finding]:
    """Measure how long a question and its answer take."""
    trips: list[float] = []
    end = time.monotonic() + TRIPS_S
    while len(trips) < TRIPS and time.monotonic() < end:
        began = time.perf_counter()
        patient.channel.call("TIME")
        trips.append(time.perf_counter() - began)
    middle, worst = statistics.median(trips), max(trips)
    said = f"{1000 * middle:.2g} ms, at worst {1000 * worst:.2g} ms of {len(trips)}"
    if middle > SLOW_S:
        yield warn(
            f"{said}: no call can be faster",
            f"agentlace bench says more; ping {patient.servers[0][0]}; prefer a cable to Wi-Fi, "
            "and have the broker near the robot",
        )
    else:
        yield ok(said)


def _bound(nbytes: int) -> str:
    return size(nbytes) if nbytes else "without bound"
