"""`moeprof run`: run a model with its experts where a placement says."""

import io
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from moeprof.cli.options import Json, PlannedDenseFormat, Seed, read_text
from moeprof.cli.progress import load_shown
from moeprof.errors import CapacityError, MoeprofError

_EXIT_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it

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
    temperature: Annotated[float, typer.Option(help="Of sampling, from 0 up; 0 is greedy.")] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(help="Draw from the likeliest tokens up to this share, above 0 and up to 1."),
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
    output, the report to standard error; Ctrl-C ends the text, not the report. A replay that does
    not hit exactly what its trace predicts exits with 1, if trace and run are in float32; narrower
    types choose other experts now and then.

    Example:
        moeprof run --placement placements/demo.json --prompt "def main("
    """
    given = [prompt is not None, prompt_file is not None, chat, replay is not None]
    if sum(given) != 1:
        raise typer.BadParameter("give one of --prompt, --prompt-file, --chat and --replay")
    if chat and sys.stdin is None:
        raise typer.BadParameter("standard input is closed, from which --chat reads")
    from moeprof.placement import read_placement

    sampling = _sampling(max_new_tokens, temperature, top_p, seed)
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
    is_interrupted, failure = False, None
    if replay is not None:
        report = _replay(plan, replay, model, options, quiet=as_json)
    else:
        text = prompt if prompt_file is None else read_text(prompt_file, "--prompt-file")
        session = _session(plan, model, options, text, compiled=not no_compile, quiet=as_json)
        if text is None:
            try:
                is_interrupted = _chat(session, sampling, quiet=as_json)
            except MoeprofError as error:
                if not session.generations:
                    raise
                failure = error  # told after the report of the turns before it
        else:
            with _ended_by_ctrl_c(session):
                generation = session.generate(text, sampling, None if as_json else _write)
            _end_line(as_json)
            is_interrupted = generation.is_interrupted
        report = session.report()
    _show(report, as_json)
    if failure is not None:
        raise failure
    if is_interrupted:
        raise typer.Exit(_EXIT_INTERRUPTED)
    if report.replay is not None and report.replay_is_exact and not report.replay.equal:
        raise typer.Exit(1)


def _sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> "Sampling":
    from moeprof.runtime import Sampling

    try:
        return Sampling(max_new_tokens, temperature, top_p, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _session(
    plan: "Placement",
    model: str | None,
    options: "LoadOptions",
    text: str | None,
    *,
    compiled: bool,
    quiet: bool,
) -> "Session":
    """A loaded model, once it is known that it can continue the text, or chat without one."""
    from moeprof.runtime import Prompts, Session, planned_checkpoint

    checkpoint = planned_checkpoint(plan, model)
    prompts = Prompts(checkpoint, plan.budget.context_tokens)
    if text is None:
        prompts.check_chat()
    else:
        prompts.text(text)
    session = Session(load_shown(plan, checkpoint, options, quiet), compiled, prompts)
    for note in session.sequence.notes:
        typer.echo(f"note: {note}", err=True)
    return session


@contextmanager
def _ended_by_ctrl_c(session: "Session") -> Iterator[None]:
    """Let Ctrl-C end the generation after the token it is at, and a second one the program."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # as in a shell's background jobs
        yield
        return

    def end(number: int, frame: object) -> None:
        session.interrupt()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _replay(
    plan: "Placement", spec: str, model: str | None, options: "LoadOptions", quiet: bool
) -> "RunReport":
    from moeprof.runtime import planned_checkpoint, replay, select_documents
    from moeprof.runtime.replay import check_same_model

    selection = select_documents(spec)
    checkpoint = planned_checkpoint(plan, model)
    check_same_model(selection, checkpoint)
    options = {**options, "within_budget": False}
    if options["dtype"] == "auto":
        options = {**options, "dtype": selection.trace.metadata.capture.dtype}
    loaded = load_shown(plan, checkpoint, options, quiet)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replay", total=None)
        return replay(
            loaded, selection, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _chat(session: "Session", sampling: "Sampling", quiet: bool) -> bool:
    """Each line of standard input is a turn; its end ends the conversation, and so does Ctrl-C.

    A turn that does not fit the context any more is left out. Where nobody types them, turns are
    written above their answers, so that these can be told apart.

    Returns:
        Whether it was Ctrl-C.
    """
    messages: list[dict[str, str]] = []
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A bad line is found when it is read, not with those before it.
        sys.stdin.reconfigure(errors="surrogateescape")
    is_typed = sys.stdin.isatty()
    try:
        while line := _read_line():
            if not line.strip():
                continue
            line = line.rstrip("\n")
            if not is_typed and not quiet:
                typer.echo(f"> {line}")
            asked = [*messages, {"role": "user", "content": line}]
            try:
                with _ended_by_ctrl_c(session):
                    answer = session.reply(asked, sampling, None if quiet else _write)
            except CapacityError as error:
                typer.echo(f"note: this turn is left out: {error}\nhint: {error.hint}", err=True)
                continue
            _end_line(quiet)
            if answer.is_interrupted:
                return True
            messages = [*asked, {"role": "assistant", "content": answer.text}]
    except KeyboardInterrupt:
        typer.echo(err=True)
        return True
    return False


def _read_line() -> str:
    if sys.stdin.isatty():
        typer.echo("> ", nl=False, err=True)
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
