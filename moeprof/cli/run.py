"""`moeprof run`: run a model with its experts where a placement says."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from moeprof.cli.options import Json, PlannedDenseFormat, Seed, read_text
from moeprof.cli.progress import load_shown
from moeprof.errors import MoeprofError

if TYPE_CHECKING:
    from moeprof.placement import Placement
    from moeprof.runtime import LoadOptions, RunReport, Sampling, Session


def run(
    placement: Annotated[
        Path, typer.Option("--placement", "-p", help="Placement file from moeprof plan.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Model directory or hub id, if it has moved since.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with the text to continue.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer each line of standard input, with its history.")
    ] = False,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="TRACE[:DOMAIN|:SEQUENCE,...]",
            help="Feed traced documents again and compare the hits.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Draw from the likeliest tokens up to this.")
    ] = 1.0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            help="bfloat16, float16, float32, or auto: as the checkpoint; of a replay, as traced."
        ),
    ] = "auto",
    weight_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of the experts: q4_0, q8_0, bf16, or stored (torch's arithmetic, slow). "
            "[default: the plan's; if it leaves that open, bf16 for a bfloat16 model, else stored]",
        ),
    ] = None,
    dense_format: PlannedDenseFormat = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "--cpu-threads",
            min=1,
            help="Threads that compute experts in RAM. [default: one per core]",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep the packed experts there, and start from them next time."
        ),
    ] = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="On CUDA, decode without compiling layers first.")
    ] = False,
    layer_times: Annotated[
        bool,
        typer.Option("--layer-times", help="Report where the time of decoding goes, per layer."),
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run a model with its experts where a placement says, and measure it.

    Give one of --prompt, --prompt-file, --chat and --replay. Generated text goes to standard
    output, the report to standard error. A replay that does not hit exactly what its trace
    predicts exits with 1, if trace and run are in float32; narrower types choose other experts now
    and then.

    Example:
        moeprof run --placement placements/demo.json --prompt "def main("
    """
    given = [prompt is not None, prompt_file is not None, chat, replay is not None]
    if sum(given) != 1:
        raise typer.BadParameter("give one of --prompt, --prompt-file, --chat and --replay")
    from moeprof.placement import read_placement
    from moeprof.runtime import Sampling, Session

    plan = read_placement(placement)
    options: LoadOptions = {
        "device": device,
        "dtype": dtype,
        "weight_format": weight_format,
        "dense_format": dense_format,
        "num_threads": threads,
        "layer_times": layer_times,
        "store": store,
        "tell": lambda line: typer.echo(line, err=True),
    }
    if replay is not None:
        report = _replay(plan, replay, model, options, quiet=as_json)
    else:
        sampling = Sampling(max_new_tokens, temperature, top_p, seed)
        text = prompt if prompt_file is None else read_text(prompt_file, "--prompt-file")
        session = Session(load_shown(plan, model, options, quiet=as_json), compiled=not no_compile)
        for note in session.sequence.notes:
            typer.echo(f"note: {note}", err=True)
        if text is None:
            _chat(session, sampling, quiet=as_json)
        else:
            session.generate(text, sampling, None if as_json else _write)
            _end_line(as_json)
        report = session.report()
    _show(report, as_json)
    if report.replay is not None and report.replay_is_exact and not report.replay.equal:
        raise typer.Exit(1)


def _replay(
    plan: "Placement", spec: str, model: str | None, options: "LoadOptions", quiet: bool
) -> "RunReport":
    from moeprof.runtime import replay, select_documents

    selection = select_documents(spec)
    options = {**options, "within_budget": False}
    if options["dtype"] == "auto":
        options = {**options, "dtype": selection.trace.metadata.capture.dtype}
    loaded = load_shown(plan, model, options, quiet)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=None)
        return replay(
            loaded, selection, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _chat(session: "Session", sampling: "Sampling", quiet: bool) -> None:
    """Each line of standard input is a turn; its end ends the conversation."""
    messages: list[dict[str, str]] = []
    asking = sys.stdin.isatty()
    while True:
        if asking:
            typer.echo("> ", nl=False, err=True)
        line = _read_line()
        if not line:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.rstrip("\n")})
        answer = session.reply(messages, sampling, None if quiet else _write)
        _end_line(quiet)
        messages.append({"role": "assistant", "content": answer.text})


def _read_line() -> str:
    try:
        line = sys.stdin.readline()
        line.encode("utf-8")
    except UnicodeError as error:
        raise MoeprofError(
            "standard input: not UTF-8 text", "convert it, as in: iconv -f latin1 -t utf-8"
        ) from error
    return line


def _write(piece: str) -> None:
    typer.echo(piece, nl=False)


def _end_line(quiet: bool) -> None:
    if not quiet:
        typer.echo()


def _show(report: "RunReport", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.to_document(), indent=1, sort_keys=True, ensure_ascii=False))
        return
    from moeprof.cli.run_tables import print_report

    print_report(report, Console(stderr=True))
