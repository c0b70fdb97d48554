"""`moeprof bench`: measure a plan against simpler placements of the same budget."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from moeprof.cli.options import Force, Json, PlannedDenseFormat, Seed, read_text, table_console
from moeprof.cli.progress import load_shown
from moeprof.errors import CapacityError

if TYPE_CHECKING:
    from moeprof.checkpoint import Checkpoint
    from moeprof.placement import Placement
    from moeprof.runtime import LoadOptions
    from moeprof.runtime.bench import Case, Figure
    from moeprof.runtime.model import LoadedModel

_ANY_EXPERTS = (
    "any_experts: the same number of experts of each layer, drawn at random, as there is no trace "
    "here; a plan's uniform keeps the busiest ones of each layer"
)


def bench(
    placement: Annotated[
        Path, typer.Option("--placement", "-p", help="Placement file from moeprof plan.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Model directory or hub id, if it has moved since.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text to feed. [default: the bundled texts]")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 128,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens fed one by one.")] = 32,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each placement is measured; they take turns.")
    ] = 7,
    weight_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="Of the experts: q4_0, q8_0 or bf16. [default: the plan's, or bf16]"
        ),
    ] = None,
    dense_format: PlannedDenseFormat = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", "--cpu-threads", min=1, help="As in moeprof run."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16, float32, or auto: as the checkpoint.")
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file to write, too.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure a plan against simpler placements of the same budget, in one interleaved run.

    Prefill and decode of real text are timed apart, cold (the first pass after a placement was
    brought in) and warm, beside the roofline: the bytes that had to be read, over the bandwidths
    measured in the same run. Takes host memory for all experts, whatever the plan.

    Example:
        moeprof bench --placement placements/demo.json
    """
    from moeprof.placement import check_free, read_placement, write_whole
    from moeprof.runtime import planned_checkpoint
    from moeprof.runtime.bench import BenchPlan, cases_of
    from moeprof.runtime.bench import bench as measure

    if output is not None:
        check_free(output, force)
    plan = read_placement(placement)
    options: LoadOptions = {
        "device": device,
        "dtype": dtype,
        "weight_format": weight_format or (None if plan.planned_formats else "bf16"),
        "dense_format": dense_format,
        "num_threads": threads,
        "movable": True,
        "tell": lambda line: typer.echo(line, err=True),
    }
    checkpoint = planned_checkpoint(plan, model)
    _check_room(plan, checkpoint, prompt_tokens, decode_tokens)
    fed = _token_ids(checkpoint, text, prompt_tokens + decode_tokens)
    loaded = load_shown(plan, checkpoint, options, quiet=as_json)
    cases = cases_of(plan, loaded.experts.expert_bytes, seed)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("bench", total=None)
        figures = measure(
            loaded,
            cases,
            BenchPlan(fed[:prompt_tokens], fed[prompt_tokens:], rounds),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    document = _document(loaded, cases, figures)
    try:
        if output is not None:
            write_whole(output, document.encode())
            typer.echo(f"wrote {output}", err=True)
    finally:  # what took minutes to measure is shown even where the disk is full
        if as_json:
            typer.echo(document, nl=False)
        else:
            _print(loaded, figures)


def _check_room(
    plan: "Placement", checkpoint: "Checkpoint", prompt_tokens: int, decode_tokens: int
) -> None:
    """Refuse more tokens than the plan has room for, or than the model was made for."""
    fed = f"bench: {prompt_tokens} prompt and {decode_tokens} decode tokens"
    count, context = prompt_tokens + decode_tokens, plan.budget.context_tokens
    limit = checkpoint.max_positions
    if limit is not None and count > limit:
        raise CapacityError(f"{fed}, {checkpoint.name} was made for {limit}", "lower both")
    if count > context:
        raise CapacityError(
            f"{fed}, the placement was planned for a context of {context}",
            f"lower both, or plan again with --context {count}",
        )


def _token_ids(checkpoint: "Checkpoint", text: Path | None, count: int) -> list[int]:
    """The first tokens of a text; of the bundled texts, as many as are needed."""
    from moeprof.checkpoint import load_tokenizer
    from moeprof.demo import text_path

    files = sorted(text_path().glob("*/*.txt")) if text is None else [text]
    tokenizer = load_tokenizer(checkpoint.path)
    found: list[int] = []
    for file in files:
        found += tokenizer(read_text(file, "--text"), verbose=False)["input_ids"]
        if len(found) >= count:
            return found[:count]
    name = "the bundled texts" if text is None else str(text)
    raise CapacityError(
        f"{name}: {len(found)} tokens, {count} are needed",
        "lower --prompt-tokens and --decode-tokens, or give a longer --text",
    )


def _document(loaded: "LoadedModel", cases: "list[Case]", figures: "list[Figure]") -> str:
    entries = [asdict(figure) | {"of_roofline": figure.of_roofline} for figure in figures]
    document = {
        "model": loaded.checkpoint.name,
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "dense_format": loaded.dense_format,
        "weight_format": loaded.experts.weight_format,
        "placements": {case.name: case.description for case in cases},
        "figures": entries,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _print(loaded: "LoadedModel", figures: "list[Figure]") -> None:
    from moeprof.runtime.report import HOST_ONLY

    console = table_console()
    if loaded.device.type == "cpu":
        Console(stderr=True).print(f"note: {HOST_ONLY}", highlight=False, soft_wrap=True)
    held = loaded.experts.weight_format
    title = f"{loaded.checkpoint.name} on {loaded.device}, experts in {held}"
    table = Table(title=title, title_justify="left")
    for name in ("phase", "state", "placement"):
        table.add_column(name)
    for name in ("tokens/s", "interval", "of roofline", "vram hit rate"):
        table.add_column(name, justify="right")
    order = {"prefill": 0, "decode": 1, "cold": 0, "warm": 1}
    for figure in sorted(figures, key=lambda f: (order[f.phase], order[f.state])):
        table.add_row(
            figure.phase,
            figure.state,
            figure.placement,
            f"{figure.tokens_per_s:,.1f}",
            f"{figure.low:,.1f} to {figure.high:,.1f}" if figure.confidence else "-",
            f"{figure.of_roofline:.2f}",
            f"{figure.hit_rate:.1%}",
        )
    console.print(table)
    typer.echo(f"{_intervals(figures[0].confidence)}\n{_ANY_EXPERTS}", err=True)


def _intervals(confidence: float) -> str:
    """What the intervals mean; those of a single round hold nothing."""
    if not confidence:
        return "one round gives no interval; measure more with --rounds"
    return f"medians over the rounds; each interval holds the median with {confidence:.1%}"
