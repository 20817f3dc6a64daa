"""`lgld-ops info`: what was built, what runs, and why not more."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Show versions, the compiled CPU variants, the one in use, and what runs on a GPU."""
    import lgld_ops

    facts = lgld_ops.build_info()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key in ("lgld_ops", "torch", "python", "system", "processor", "threads", "executable"):
        table.add_row(key, str(facts[key]))
    built = facts["built_with"]
    if built:
        table.add_row("built with", f"{built['compiler']}, torch {built['torch']}")
    cpu = facts["cpu"]
    table.add_row("CPU variant", f"{cpu['variant'] or 'none: plain torch'} ({cpu['reason']})")
    for name, state in cpu["variants"].items():
        table.add_row("", f"{name}: {state}")
    gpu = facts["gpu"]
    devices = ", ".join(facts["cuda"]["devices"]) or "none here"
    table.add_row("GPU", devices)
    table.add_row("GPU kernels", f"{gpu['backend'] or 'an error'} ({gpu['reason']})")
    for name in ("cuda", "triton"):
        table.add_row("", f"{name}: {facts[name]['reason']}")
    Console().print(table)
