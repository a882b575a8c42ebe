"""What an interface takes and gives: declared by its server, or learned from its first call."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentlace import codec
from agentlace.codec import Signature
from agentlace.errors import AgentlaceError, DecodeError

DIGEST_CHARS = 16
SEPARATOR = "@"
"""Between a name and a version, where one is called."""


@dataclass(frozen=True)
class InterfaceSpec:
    """What an interface takes and gives, as its server lists it.

    A tree has an ArraySpec for each array and the type's name for each other leaf. It is of one
    caller's payload or reply, also where calls are batched.

    Attributes:
        name: what clients call.
        version: of the interface.
        is_default: whether calls that name no version get this one.
        inputs: tree of the payload; None if it was not declared and no call has succeeded yet.
        outputs: tree of the reply, likewise.
        inputs_declared: whether the server declares the inputs: then others are refused. Learned
            ones are those of the first call, and refuse nothing.
        outputs_declared: whether the server declares the outputs.
        uses_weights: whether it is called with a trainer's newest network.
    """

    name: str
    version: str
    is_default: bool
    inputs: Any
    outputs: Any
    inputs_declared: bool
    outputs_declared: bool
    uses_weights: bool

    @property
    def title(self) -> str:
        """Return what can be called: name@version."""
        return f"{self.name}{SEPARATOR}{self.version}"

    def __str__(self) -> str:
        """Return it for people, one leaf a line."""
        notes = ["default"] * self.is_default + ["with a trainer's network"] * self.uses_weights
        return "\n".join(
            [
                f"{self.title} ({', '.join(notes)})" if notes else self.title,
                *_shown("in", self.inputs, self.inputs_declared),
                *_shown("out", self.outputs, self.outputs_declared),
            ]
        )


class Shapes:
    """What one interface takes and gives, as far as is known. Belongs to the thread that calls it.

    Attributes:
        inputs: declared, or learned; None before the first call.
        outputs: likewise.
        inputs_declared: whether payloads are checked.
        outputs_declared: whether the outputs are the declared ones.
    """

    def __init__(self, inputs: Any, outputs: Any) -> None:
        self.inputs_declared = inputs is not None
        self.outputs_declared = outputs is not None
        self.inputs = _travelling(inputs) if self.inputs_declared else None
        self.outputs = _travelling(outputs) if self.outputs_declared else None
        self.is_known = self.inputs_declared and self.outputs_declared

    def check(self, payload: Any) -> None:
        """Check a payload, if the inputs are declared; raises SchemaMismatch."""
        if self.inputs_declared and self.inputs is not None:
            self.inputs.check(payload)

    def learn(self, payload: Any, reply: Any) -> None:
        """Take one caller's first successful call for an example of what was not declared."""
        self.is_known = True
        with contextlib.suppress(AgentlaceError, TypeError, ValueError):  # then it stays unknown
            if not self.inputs_declared:
                self.inputs = _travelling(payload)
            if not self.outputs_declared:
                self.outputs = _travelling(reply)


def _travelling(tree: Any) -> Signature:
    """Return a tree's signature; raises SchemaMismatch if it could not be told."""
    signature = Signature(tree)
    signature.describe()
    return signature


def told(
    name: str, version: str, is_default: bool, shapes: Shapes, uses_weights: bool
) -> dict[str, Any]:
    """Return an interface's spec as it travels."""
    return {
        "name": name,
        "version": version,
        "is_default": is_default,
        "inputs": shapes.inputs and shapes.inputs.describe(),
        "outputs": shapes.outputs and shapes.outputs.describe(),
        "inputs_declared": shapes.inputs_declared,
        "outputs_declared": shapes.outputs_declared,
        "uses_weights": uses_weights,
    }


def digest_of(specs: list[dict[str, Any]]) -> str | None:
    """Return what changes when the declared inputs do; None if there are none."""
    declared = [
        [spec["name"], spec["version"], spec["is_default"], spec["inputs"]]
        for spec in specs
        if spec["inputs_declared"]
    ]
    if not declared:
        return None
    return hashlib.sha256(bytes(codec.encode(declared).copy())).hexdigest()[:DIGEST_CHARS]


def read(specs: Any) -> tuple[list[InterfaceSpec], dict[str, Signature]]:
    """Return what a server told, and by the names that can be called what payloads must be.

    Raises:
        DecodeError: it is damaged.
    """
    if not isinstance(specs, list):
        raise DecodeError("a list of interfaces that is none")
    found = [_read_one(spec) for spec in specs]
    checks = {spec.title: check for spec, check in found}
    checks.update({spec.name: check for spec, check in found if spec.is_default})
    return [spec for spec, _ in found], {k: v for k, v in checks.items() if v is not None}


def _read_one(spec: Any) -> tuple[InterfaceSpec, Signature | None]:
    """Return a spec, and what payloads are checked by, if they are."""
    try:
        values = {key: spec[key] for key in InterfaceSpec.__dataclass_fields__}
    except (KeyError, TypeError) as error:
        raise DecodeError(f"an interface without {error}") from error
    if type(values["name"]) is not str or type(values["version"]) is not str:
        raise DecodeError("an interface whose name or version is no text")
    told = (spec[key] for key in ("inputs", "outputs"))
    inputs, outputs = (None if values is None else Signature.described(values) for values in told)
    trees = {"inputs": inputs and inputs.tree, "outputs": outputs and outputs.tree}
    found = InterfaceSpec(**{**values, **trees})
    return found, inputs if found.inputs_declared else None


def _shown(title: str, tree: Any, declared: bool) -> Iterable[str]:
    if tree is None and not declared:
        yield f"  {title:<4}not known before the first call"
        return
    for path, leaf in _leaves(tree, ""):
        yield f"  {title:<4}{path}{': ' if path else ''}{leaf}{'' if declared else ' (learned)'}"
        title = ""


def _leaves(tree: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        yield path, tree
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}/{key}" if path else str(key))
