"""``agentlace rlds``: datasets of recorded episodes."""

from __future__ import annotations

import typer

from agentlace.cli import rlds_convert, rlds_export, rlds_info, rlds_replay, rlds_verify

app = typer.Typer(help="Work with RLDS datasets of episodes.", no_args_is_help=True)
app.command("convert")(rlds_convert.convert)
app.command("export")(rlds_export.export)
app.command("info")(rlds_info.info)
app.command("replay")(rlds_replay.replay)
app.command("verify")(rlds_verify.verify)
