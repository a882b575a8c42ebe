"""Round trips: ``act``, ``call`` and ``obs``."""

from benchmarks.model import US, Case, Contestant, Goal, Metric, Row
from benchmarks.processes import free_port

MICROSECONDS = Metric("us", "µs")
WIRE, LISTS, PAIR, MEMCPY = "earlier wire", "list echo", "socket pair", "memcpy"
OPENPI, GRPC, PORTAL, RAY = "openpi websocket", "gRPC", "portal", "Ray"
OBS_SIZES = (64 << 10, 1 << 20, 8 << 20)


def _answers(client, do, **fixed):
    def measure(**params):
        return {"us": client.ask(do, **fixed, **params)}

    return measure


def open_act(stage, do="act"):
    stage.broker()
    sizes = list(OBS_SIZES)
    stage.program("ours_calls", "action_server", sizes=sizes)
    return _answers(stage.program("ours_calls", "action_client", sizes=sizes), do)


def open_obs(stage):
    return open_act(stage, "obs")


def open_call(stage):
    stage.broker()
    stage.program("ours_calls", "inference_server")
    return _answers(stage.program("ours_calls", "inference_client"), "call")


def _open_wire(stage, do):
    port = free_port()
    stage.program("zmq_calls", "server", environment="wire", port=port)
    return _answers(stage.program("zmq_calls", "client", environment="wire", port=port), do)


def open_wire_call(stage):
    return _open_wire(stage, "call")


def open_wire_obs(stage):
    return _open_wire(stage, "obs")


def _open_lists(stage, do):
    path = str(stage.broker().settings.socket_path)
    stage.program("floors", "list_server", path=path)
    return stage.program("floors", "list_client", path=path), do


def _open_peer(module, environment):
    def open_(stage):
        port = free_port()
        stage.program(module, "server", environment=environment, port=port)
        client = stage.program(module, "client", environment=environment, port=port)
        return _answers(client, "call")

    return open_


def open_ray(stage):
    return _answers(stage.program("ray_calls", "client", environment="ray"), "call")


def open_lists_echo(stage):
    client, do = _open_lists(stage, "echo")
    return lambda size, n, kind=None: {"us": client.ask(do, size=size, n=n)}


def open_lists_obs(stage):
    return _answers(*_open_lists(stage, "ask"))


def open_pair(stage):
    program = stage.program("floors", "pair")
    return lambda size, n, kind=None: {"us": program.ask("echo", size=size, n=n)}


def open_memcpy(stage):
    return _answers(stage.program("floors", "memory"), "echo")


def _small_goals(who):
    return (
        Goal(f"{who}: faster than the earlier wire", "us", (WIRE,), (who,), least=2.5),
        Goal(f"{who}: p99 against their median", "us", (who,), (WIRE,), "p99", most=1.5),
        Goal(f"{who}: time of a list echo", "us", (who,), (LISTS,), most=1.3),
    )


def _small_case(name, size):
    goals = (*_small_goals(f"{US} act"), *_small_goals(f"{US} call"))
    params = {"kind": "blob", "size": size, "n": 1000}
    return Case(name, params, goals, warmup={"n": 300})


def _obs_case(name, size, n):
    goal = Goal("faster than the earlier wire", "us", (WIRE,), (US,), least=2.0)
    return Case(name, {"size": size, "n": n}, (goal,), warmup={"n": max(3, n // 5)})


SMALL = Row(
    name="call_small",
    title="act/call round trip, small payload",
    metrics=(MICROSECONDS,),
    contestants=(
        Contestant(f"{US} act", open_act),
        Contestant(WIRE, open_wire_call),
        Contestant(f"{US} call", open_call),
        Contestant(LISTS, open_lists_echo),
        Contestant(PAIR, open_pair),
    ),
    cases=(_small_case("64 B", 64), _small_case("1 KiB", 1 << 10)),
)

_RESTLESS = (
    Contestant(PORTAL, _open_peer("portal_calls", "portal")),
    Contestant(RAY, open_ray),
)
"""Their processes use the machine while others are measured, so they have rows of their own."""

SMALL_RESTLESS = Row(
    name="call_small_others",
    title="act/call round trip, small payload, beside portal and Ray, which never rest",
    metrics=(MICROSECONDS,),
    contestants=(Contestant(f"{US} call", open_call), *_RESTLESS),
    cases=(Case("1 KiB", {"kind": "blob", "size": 1 << 10, "n": 500}, (), warmup={"n": 300}),),
)

_OBS_CONTESTANTS = (
    Contestant(US, open_obs),
    Contestant(WIRE, open_wire_obs),
    Contestant(LISTS, open_lists_obs),
    Contestant(MEMCPY, open_memcpy),
)

OBS_SMALL = Row(
    name="obs_64k",
    title="obs of 64 KiB",
    metrics=(MICROSECONDS,),
    contestants=_OBS_CONTESTANTS,
    cases=(_obs_case("64 KiB", 64 << 10, 500),),
)

OBS_LARGE = Row(
    name="obs_large",
    title="obs of 1 MiB and 8 MiB of camera noise",
    metrics=(MICROSECONDS,),
    contestants=_OBS_CONTESTANTS,
    cases=(_obs_case("1 MiB", 1 << 20, 60), _obs_case("8 MiB", 8 << 20, 15)),
)

_POLICY_CASE = "294 KiB to the policy, (50, 7) float32 back"
_POLICY_PARAMS = {"kind": "policy", "size": 0, "n": 300, "name": "policy"}

POLICY = Row(
    name="policy_call",
    title="policy call with two 224x224x3 images and a state",
    metrics=(MICROSECONDS,),
    contestants=(
        Contestant(US, open_call),
        Contestant(OPENPI, _open_peer("openpi_calls", "rpc")),
        Contestant(GRPC, _open_peer("grpc_calls", "rpc")),
        Contestant(WIRE, open_wire_call),
    ),
    cases=(
        Case(
            _POLICY_CASE,
            _POLICY_PARAMS,
            (
                Goal(
                    "faster than openpi's and gRPC's better one",
                    "us",
                    (OPENPI, GRPC),
                    (US,),
                    least=1.5,
                ),
            ),
            warmup={"n": 60},
        ),
    ),
)

POLICY_RESTLESS = Row(
    name="policy_call_others",
    title="policy call with two 224x224x3 images, beside portal and Ray, which never rest",
    metrics=(MICROSECONDS,),
    contestants=(Contestant(US, open_call), *_RESTLESS),
    cases=(Case(_POLICY_CASE, _POLICY_PARAMS, (), warmup={"n": 60}),),
)

ROWS = (SMALL, SMALL_RESTLESS, OBS_SMALL, OBS_LARGE, POLICY, POLICY_RESTLESS)
