"""What the user may do, against what its role has to (``broker/users.acl``).

Each command is tried in a transaction that is discarded: the broker checks the rights when a
command is queued, and nothing is ever done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agentlace.operating.doctor.findings import Finding, fail, ok, skip, warn
from agentlace.operating.doctor.patient import Patient
from agentlace.transport.channel import Channel
from agentlace.transport.keys import ServiceKeys
from agentlace.transport.resp import Command, ErrorReply, Reply
from agentlace.transport.secured import ROLES

NUMBER = 0
"""Of services that nobody has: the keys are only named."""
NAME = "doctor"
_DENIALS = ("OOM", "MISCONF", "READONLY", "NOREPLICAS")
"""What keeps everybody from writing."""


@dataclass(frozen=True)
class Job:
    """Something that a role has to be able to do.

    Attributes:
        roles: who has to.
        what: for people, after "may".
        key: one of the keys, by which a cluster's node is found.
        commands: all of them are needed.
        channel: to be subscribed to as well, if any.
    """

    roles: tuple[str, ...]
    what: str
    key: str
    commands: tuple[Command, ...]
    channel: str = ""

    @property
    def writes(self) -> bool:
        """Whether who does it writes."""
        return "observer" not in self.roles


def jobs(namespace: str) -> list[Job]:
    """Return what each role has to be able to do in a namespace."""
    trainer, action, inference = (
        ServiceKeys(namespace, kind, NUMBER) for kind in ("trainer", "action", "inference")
    )
    store = trainer.store(NAME)
    stream = store.stream(NAME)
    return [
        Job(
            *(("actor",), "send transitions", stream),
            (("XADD", stream, "*", "first", 0), ("XTRIM", stream, "MAXLEN", 0)),
        ),
        Job(
            *(("actor", "inference"), "receive networks", trainer.weights),
            (("GET", trainer.weights), ("HSET", trainer.weights_readers, NAME, "")),
            trainer.weights_channel,
        ),
        Job(
            *(("actor",), "call a service", inference.requests),
            (("RPUSH", inference.requests, ""), ("BLPOP", inference.reply(NAME), 1)),
        ),
        Job(
            *(("actor",), "serve observations and actions", action.server),
            (("SET", action.server, ""), ("BLPOP", action.requests, 1)),
        ),
        Job(
            *(("learner",), "be the trainer", trainer.server),
            (("SET", trainer.server, ""), ("BLPOP", trainer.requests, 1)),
        ),
        Job(
            *(("learner",), "publish networks", trainer.weights),
            (("SET", trainer.weights, ""),),
        ),
        Job(
            *(("learner", "recorder", "observer", "operator"), "read transitions", stream),
            (("XREAD", "STREAMS", stream, 0), ("SMEMBERS", store.actors)),
        ),
        Job(
            *(("learner",), "note how far a trainer has read", store.prefix),
            (("HSET", store.cursor("trainer:doctor"), NAME, ""),),
        ),
        Job(
            *(("learner", "recorder"), "note how far a recorder has read", store.prefix),
            (
                ("HSET", store.cursor("recorder:doctor"), NAME, ""),
                ("SADD", store.consumers, NAME),
            ),
        ),
        Job(
            *(("inference",), "serve a policy", inference.server),
            (("SET", inference.server, ""), ("BLPOP", inference.requests, 1)),
        ),
        Job(
            *(("observer", "operator"), "look at everything", stream),
            (("SCAN", 0), ("XREVRANGE", stream, "+", "-"), ("GET", action.newest_obs)),
        ),
        Job(
            *(("operator",), "command trainers", trainer.commands),
            (("RPUSH", trainer.commands, ""), ("BLPOP", trainer.answer(NAME), 1)),
        ),
    ]


def rights(patient: Patient) -> Iterator[Finding]:
    """Try what each role has to be able to do."""
    if patient.url.scheme == "memory":
        yield skip("memory:// has no users")
        return
    user, wanted = patient.user, patient.role
    wanted = wanted or (user if user in ROLES else "")
    every = jobs(patient.url.namespace)
    may = [job for job in every if _may(patient, job)]
    if wanted and wanted != "admin":
        yield _judged(user, wanted, patient.url.namespace, every, may)
    elif wanted == "admin" and len(may) < len(every):
        yield _lacking(user, wanted, patient.url.namespace, every, may)
    else:
        yield _told(user, patient.url.namespace, every, may)


def writes(patient: Patient) -> Iterator[Finding]:
    """Tell whether the broker takes what is sent; the check of the rights has tried."""
    if patient.denial is not None:
        yield _denied(patient, patient.denial)
    elif patient.has_written:
        yield ok("the broker takes what is sent")
    else:
        yield skip(f"user {patient.user!r} may not write anything")


def _may(patient: Patient, job: Job) -> bool:
    channel = patient.channel.at(job.key)
    replies = channel.exchange([("MULTI",), *job.commands, ("DISCARD",)])
    if job.channel:
        replies += _subscribed(channel, job.channel)
    refusals = [reply for reply in replies if isinstance(reply, ErrorReply)]
    patient.denial = next((r for r in refusals if r.code in _DENIALS), patient.denial)
    is_allowed = not any(reply.code == "NOPERM" for reply in refusals)
    patient.has_written |= is_allowed and job.writes
    return is_allowed


def _subscribed(channel: Channel, name: str) -> list[Reply]:
    """Return the answers to a subscription, which is ended at once."""
    (told,) = channel.exchange([("SUBSCRIBE", name)])
    if not isinstance(told, ErrorReply):
        channel.exchange([("UNSUBSCRIBE", name)])
    return [told]


def _judged(user: str, role: str, namespace: str, every: list[Job], may: list[Job]) -> Finding:
    """Return whether a user may do what its role has to, and no more."""
    if any(role in job.roles and job not in may for job in every):
        return _lacking(user, role, namespace, every, may)
    more = [job.what for job in may if role not in job.roles]
    if more and role == user:
        todo = f"replace the rules of {user!r} by those in broker/users.acl (docs/security.md)"
        return warn(f"user {user!r} may do more than its role: {', '.join(more)}", todo)
    return ok(f"user {user!r} may do the job of {_article(role)}")


def _lacking(user: str, role: str, namespace: str, every: list[Job], may: list[Job]) -> Finding:
    mine = [job for job in every if role in job.roles or role == "admin"]
    lacks = [job.what for job in mine if job not in may]
    todo = "compare its rules with broker/users.acl: redis-cli --user admin --askpass ACL LIST"
    if len(lacks) == len(mine):
        todo = (
            f"is {namespace!r} the namespace that it is made for (--namespace, "
            f"AGENTLACE_NAMESPACE)? Else {todo}"
        )
    found = f"user {user!r} may not do the job of {_article(role)} in namespace {namespace!r}"
    return fail(f"{found}: it may not {', nor '.join(lacks)}", todo)


def _told(user: str, namespace: str, every: list[Job], may: list[Job]) -> Finding:
    """Return what a user may do who is not named after a role."""
    if len(may) == len(every):
        return ok(f"user {user!r} may do every role's job")
    able = [role for role in ROLES[:-1] if all(job in may for job in every if role in job.roles)]
    if able:
        return ok(f"user {user!r} may do the job of {', '.join(map(_article, able))}")
    todo = "connect as the user of a role, or give this one its rules (broker/users.acl)"
    return fail(f"user {user!r} may do no role's job in namespace {namespace!r}", todo)


def _denied(patient: Patient, denial: ErrorReply) -> Finding:
    """Return what keeps everybody from writing."""
    if denial.code == "OOM":
        todo = (
            "start or speed up who reads the streams (agentlace consumers), or "
            f"{patient.to_set('maxmemory', '8gb')}"
        )
        return fail("the broker is full: it refuses every write", todo)
    if denial.code == "MISCONF":
        return fail(
            "the broker refuses every write, since it cannot write to its disk",
            "make room on the broker's disk (df -h), then restart it",
        )
    if denial.code == "READONLY":
        todo = "name the master, or its sentinels: redis+sentinel://HOST:26379/NAME"
        return fail("this server is a replica, which nobody can write to", todo)
    todo = "start its replicas, or lower min-replicas-to-write in its redis.conf"
    return fail("the broker refuses writes while it has too few replicas", todo)


def _article(role: str) -> str:
    name = "inference server" if role == "inference" else role
    return f"{'an' if role[0] in 'aeio' else 'a'} {name}"
