"""``agentlace rlds``: datasets of recorded episodes."""

from __future__ import annotations

import typer

from agentlace.cli import rlds_export, rlds_info, rlds_verify

app = typer.Typer(help="Work with RLDS datasets of episodes.", no_args_is_help=True)
app.command("export")(rlds_export.export)
app.command("info")(rlds_info.info)
app.command("verify")(rlds_verify.verify)
