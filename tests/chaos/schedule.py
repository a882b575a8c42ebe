"""What happens to a system, drawn from a seed."""

import random
import signal
import threading
import time

from .system import ACTORS, NODES

FORGETFUL_S = 3.5
"""With ``everysec``, what was confirmed so shortly before may be lost with the machine. Its actor
sends it again, unless it has died as well: of actors and broker, one is killed only so long after
the other."""
LONGEST_S = 1.5
BOTH = 0.4
"""How often two things happen at once."""


class Fault:
    """Something that is done, lasts a while, and is undone. Printed in the schedule."""

    def __init__(self, what, target, lasts_s, do, undo):
        self.what = what
        self.target = target
        self.lasts_s = lasts_s
        self.do = do
        self.undo = undo

    def __str__(self):
        return f"{self.what} {self.target} for {self.lasts_s:.2f} s"


def nothing(system):
    pass


def draw_fault(rng, appendfsync):
    """Return the next fault."""
    lasts_s = rng.uniform(0.1, LONGEST_S)
    kinds = ["kill", "freeze", "cut", "delay", "lose", "memory", "broker", "broker"]
    kind = rng.choice(kinds)
    if kind == "broker":
        return draw_broker_fault(rng, lasts_s, appendfsync)
    if kind in ("kill", "freeze"):
        return draw_node_fault(rng, kind, lasts_s)
    if kind == "cut":
        if rng.random() < 0.5:
            return Fault("cut", "the proxy", 0.0, lambda s: s.proxy.cut(), nothing)
        return Fault("cut", "all clients", 0.0, lambda s: s.cut_clients(), nothing)
    if kind == "delay":
        delay_s = rng.uniform(0.002, 0.05)
        return Fault(
            "delay",
            f"the proxy by {delay_s:.3f} s",
            lasts_s,
            lambda s: setattr(s.proxy, "delay_s", delay_s),
            lambda s: setattr(s.proxy, "delay_s", 0.0),
        )
    if kind == "lose":
        lose = (lambda s: s.proxy.loses.set()), (lambda s: s.proxy.loses.clear())
        return Fault("lose", "what goes through the proxy", lasts_s, *lose)
    return Fault("fill", "memory", lasts_s, lambda s: s.fill_memory(), lambda s: s.free_memory())


def draw_node_fault(rng, kind, lasts_s):
    name = rng.choice(NODES)
    if kind == "kill":
        pair = (lambda s: s.nodes[name].kill()), (lambda s: s.nodes[name].start())
    else:
        pair = (lambda s: s.nodes[name].freeze()), (lambda s: s.nodes[name].thaw())
    return Fault(kind, name, lasts_s, *pair)


def draw_broker_fault(rng, lasts_s, appendfsync):
    kind = rng.choice(["kill", "freeze", "power"])
    if kind == "freeze":
        return Fault(
            "freeze",
            "the broker",
            lasts_s,
            lambda s: s.signal_broker(signal.SIGSTOP),
            lambda s: s.signal_broker(signal.SIGCONT),
        )
    if kind == "power" and appendfsync == "everysec":
        age_s = rng.uniform(0.1, 0.95)
        cut = f"the broker's power, {age_s:.2f} s of its log are lost,"
        return Fault("cut", cut, lasts_s, lambda s: s.cut_power(age_s), lambda s: s.start_broker())
    return Fault(
        "kill", "the broker", lasts_s, lambda s: s.kill_broker(), lambda s: s.start_broker()
    )


def hits_broker(fault):
    return "broker" in fault.target


def draw_steps(seed, steps, appendfsync):
    """Return what a seed says: pauses, each with one or two things that then happen at once."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(steps):
        faults = [draw_fault(rng, appendfsync)]
        if rng.random() < BOTH:
            other = draw_fault(rng, appendfsync)
            if not clash(faults[0], other, appendfsync):
                faults.append(other)
        drawn.append((rng.uniform(0.1, 0.8), faults))
    return drawn


def play(system, seed, steps, appendfsync, say=print):
    """Do to a system what the seed says."""
    never = threading.Event()
    for pause_s, faults in draw_steps(seed, steps, appendfsync):
        never.wait(pause_s)
        for fault in faults:
            if appendfsync == "everysec":
                never.wait(max(safe_s(fault, system) - time.monotonic(), 0.0))
            say(f"{time.strftime('%H:%M:%S')} {fault}")
            fault.do(system)
            never.wait(fault.lasts_s / len(faults))
        for fault in sorted(faults, key=hits_broker, reverse=True):  # it must hear the others' end
            fault.undo(system)


def clash(one, other, appendfsync):
    """Whether two faults may not happen at once."""
    if one.target == other.target or (hits_broker(one) and hits_broker(other)):
        return True
    kills = [fault for fault in (one, other) if fault.what == "kill" and fault.target in ACTORS]
    return bool(kills) and appendfsync == "everysec" and (hits_broker(one) or hits_broker(other))


def safe_s(fault, system):
    """Return from when on a fault takes nothing away that nobody can send again."""
    if hits_broker(fault) and fault.what != "freeze":
        return max(system.nodes[name].died_s for name in ACTORS) + FORGETFUL_S
    if fault.what == "kill" and fault.target in ACTORS:
        return system.broker_back_s + FORGETFUL_S
    return 0.0
