"""The ``lgld-ops`` command. Each subcommand lives in a module of its own, imported only when it is called."""

from __future__ import annotations

import importlib

import click

from lgld_ops import __version__

__all__ = ["main"]

# The help texts stand here so that `lgld-ops --help` imports no subcommand.
_COMMANDS = {
    "classify": "Classify images with trained weights.",
    "export": "Make one file of trained weights: the fused network, or ONNX.",
    "info": "Say what was built, what runs here and why.",
    "bench": "Check and time the fast code against the reference on this machine.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"lgld_ops.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lgld-ops")
def main() -> None:
    """Fast custom torch ops for LGLD-Net, a classifier of blood cells."""
