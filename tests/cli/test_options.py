"""The options that commands share: which of address, namespace and environment wins."""

import pytest
import typer
from typer.testing import CliRunner

from agentlace.cli import options
from agentlace.cli.options import BrokerOption, NamespaceOption
from agentlace.config import BadSetting

app = typer.Typer()


@app.command()
def where(broker: BrokerOption = "", namespace: NamespaceOption = "") -> None:
    url = options.broker_url(broker, namespace)
    typer.echo(f"{url.host} {url.port} {url.namespace}")


def told(*arguments, **environment):
    names = ("AGENTLACE_BROKER", "AGENTLACE_NAMESPACE")
    env = {name: environment.get(name.removeprefix("AGENTLACE_")) for name in names}
    result = CliRunner().invoke(app, [*arguments], env=env)
    if result.exception:
        raise result.exception
    return result.output.strip()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((), {}, "localhost 6379 default"),
        ((), {"BROKER": "redis://lab:7000"}, "lab 7000 default"),
        ((), {"BROKER": ""}, "localhost 6379 default"),
        (("--broker", "redis://desk"), {"BROKER": "redis://lab"}, "desk 6379 default"),
        (("--broker", "desk:7000"), {}, "desk 7000 default"),
        (("--broker", "redis://desk?ns=a"), {}, "desk 6379 a"),
        (("--broker", "redis://desk?ns=a"), {"NAMESPACE": "b"}, "desk 6379 a"),
        (("--broker", "redis://desk"), {"NAMESPACE": "b"}, "desk 6379 b"),
        (("--namespace", "c"), {"NAMESPACE": "b"}, "localhost 6379 c"),
        (("--broker", "redis://desk?ns=a", "--namespace", "c"), {}, "desk 6379 c"),
    ],
)
def test_which_one_wins(arguments, environment, expected):
    assert told(*arguments, **environment) == expected


@pytest.mark.parametrize(
    "address",
    ["http://me:hunter2@desk", "redis://me:hunter2@desk:x", "redis://a:hunter2://b@desk:x"],
)
def test_an_address_that_is_none(address):
    with pytest.raises(BadSetting, match="--broker") as caught:
        told("--broker", address)
    assert "hunter2" not in str(caught.value) and "desk" in str(caught.value)


def test_a_namespace_with_braces():
    with pytest.raises(BadSetting, match=r"--namespace 'a\{b'"):
        told("--namespace", "a{b")


def test_help_names_the_variables():
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "AGENTLACE_BROKER" in help_text and "AGENTLACE_NAMESPACE" in help_text
