"""`moeprof demo`: the whole road on the bundled model and texts."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import Force


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")
    ] = Path("moeprof-demo"),
    force: Force = False,
) -> None:
    """Walk the whole road on the bundled model and texts: trace, analyze, plan, run.

    Every step is an ordinary command, printed before it runs, so that it can be repeated by hand.

    Example:
        moeprof demo -o moeprof-demo
    """
    begun = time.monotonic()
    steps = _steps(output, force)
    for number, (why, arguments) in enumerate(steps, start=1):
        typer.echo(f"\n[{number}/{len(steps)}] {why}", err=True)
        typer.echo(f"$ moeprof {shlex.join(arguments)}", err=True)
        _run(arguments)
    typer.echo(
        f"\nDone in {time.monotonic() - begun:.0f} s. Look at the pictures in {output}/plots, and "
        "repeat any step by hand with the commands above.",
        err=True,
    )


def _steps(output: Path, force: bool) -> list[tuple[str, list[str]]]:
    """What each step is for, and the command that does it."""
    from moeprof.demo import domains, model_path, text_path

    model = _short(model_path())
    trace, placement = str(output / "traces" / "demo"), str(output / "placements" / "demo.json")
    hardware = str(output / "hardware.json")
    again = ["--force"] if force else []
    data = [f"{name}={_short(text_path() / name)}" for name in domains()]
    prompt = "def read_config(path):\n"
    return [
        (
            "Record which experts the model chooses on six kinds of text, prompt and reply.",
            ["trace", model, *data, "-o", trace, "--prompt-tokens", "192", "--generate", "64"]
            + ["--batch-size", "24", "--dtype", "float32", *again],
        ),
        (
            "See how uneven that is, and whether it holds on text it was not chosen on.",
            ["analyze", trace, "--plots", str(output / "plots"), *again],
        ),
        (
            "Measure this machine.",
            ["hardware", model, "-o", hardware, "--dtype", "float32", *again],
        ),
        (
            "Decide which experts live in VRAM, under one budget for everything.",
            ["plan", trace, "--model", model, "--vram", "6MB", "--context", "512"]
            + ["--hardware", hardware, "-o", placement, *again],
        ),
        (
            "Run the model exactly so.",
            ["run", "--placement", placement, "--prompt", prompt, "--max-new-tokens", "120"]
            + ["--temperature", "0.7", "--dtype", "float32"],
        ),
        (
            "Feed it the traced text again: the hits must be those that the trace predicts.",
            ["run", "--placement", placement, "--replay", f"{trace}:python"],
        ),
    ]


def _short(path: Path) -> str:
    """The path as a person in this directory would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run(arguments: list[str]) -> None:
    from moeprof.cli import app

    app(arguments, standalone_mode=False)
