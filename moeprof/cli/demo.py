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
    import torch

    from moeprof.cli import app

    # The bundled model's matrices are too small to share among threads.
    torch.set_num_threads(1)
    begun = time.monotonic()
    steps = _steps(output, force)
    for number, (why, command) in enumerate(steps, start=1):
        typer.echo(f"\n[{number}/{len(steps)}] {why}\n$ moeprof {command}", err=True)
        code = app(shlex.split(command), standalone_mode=False)
        if code:
            raise typer.Exit(code)
    typer.echo(
        f"\nDone in {time.monotonic() - begun:.0f} s. Look at the pictures in {output}/plots, and "
        "repeat any step by hand with the commands above.",
        err=True,
    )


def _steps(output: Path, force: bool) -> list[tuple[str, str]]:
    """What each step is for, and the command line that does it."""
    from moeprof.demo import domains, model_path, text_path

    def quoted(path: Path) -> str:
        return shlex.quote(_short(path))

    model = quoted(model_path())
    data = " ".join(f"{name}={quoted(text_path() / name)}" for name in domains())
    trace, hardware = quoted(output / "traces" / "demo"), quoted(output / "hardware.json")
    placement, plots = quoted(output / "placements" / "demo.json"), quoted(output / "plots")
    again = " --force" if force else ""
    return [
        (
            "Record which experts the model chooses on six kinds of text, prompt and reply.",
            f"trace {model} {data} -o {trace} --prompt-tokens 192 --generate 64 --batch-size 24 "
            f"--dtype float32{again}",
        ),
        (
            "See how uneven that is, and whether it holds on text it was not chosen on.",
            f"analyze {trace} --plots {plots}{again}",
        ),
        (
            "Measure this machine.",
            f"hardware {model} -o {hardware}{again}",
        ),
        (
            "Decide which experts live in VRAM, under one budget for everything.",
            f"plan {trace} --model {model} --vram 10MB --context 512 --hardware {hardware} "
            f"--device-context 0 -o {placement}{again}",
        ),
        (
            "Run the model exactly so.",
            f"run --placement {placement} --prompt 'def read_config(path):' "
            "--max-new-tokens 120 --temperature 0.7",
        ),
        (
            "Feed it traced text again: the hits must be those that the trace predicts.",
            f"run --placement {placement} --replay {trace}:python",
        ),
    ]


def _short(path: Path) -> str:
    """The path as a person in this directory would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
