"""`moeprof simulate`: what cache policies would have done with the routing of a trace."""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.machine import GpuName, Hardware, RamName, machine
from moeprof.cli.options import (
    Force,
    Json,
    RunFormat,
    Seed,
    TraceArgument,
    check_format,
    table_console,
)
from moeprof.errors import CapacityError

if TYPE_CHECKING:
    from moeprof.model_shape import ModelShape
    from moeprof.plan.simulation import Simulation

_BUDGETS = "5%,10%,15%,20%,30%,40%,50%,60%,75%,90%"
_MOST_THREADS = 4


def simulate(
    trace: TraceArgument,
    policies: Annotated[
        list[str] | None, typer.Argument(metavar="[POLICY]...", help="As --policy.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="static, lru, lfu, lfru, belady or optimum, with options as in "
            "lfu:decay=0.9:scope=layer, lru:uploads=1:hysteresis=0.5 or lru+pinned:share=0.5. "
            "[default: all six]"
        ),
    ] = None,
    policy_file: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:CLASS", help="A policy of your own; the file is executed."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help=f"Room for experts, 2GB,4GB or 10%,25% of all. [default: {_BUDGETS}]"),
    ] = None,
    slots: Annotated[
        list[str] | None, typer.Option(help="The same as experts per layer: 8,16,32.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Empty the cache before each document.")
    ] = False,
    domain: Annotated[str | None, typer.Option(help="One domain. [default: all]")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds for held-out learning.")] = 5,
    all_documents: Annotated[
        bool, typer.Option("--all-documents", help="Learn from what is replayed; flatters.")
    ] = False,
    phase: Annotated[
        str | None,
        typer.Option(
            help="Routing that static lists learn from: decode, prefill or all. [default: decode "
            "where the trace has it]"
        ),
    ] = None,
    hardware: Hardware = None,
    gpu: GpuName = None,
    ram: RamName = None,
    weight_format: RunFormat = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Picture of the curves to write.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    r"""Replay cache policies over a trace: hits, bytes moved and tokens/s under each budget.

    Every batch looks up each of its experts once. What a policy learns is learned on other
    documents than it is scored on. belady knows the future; optimum bounds every policy. Tokens/s
    need a machine: --hardware, or --gpu and --ram.

    Example:
        moeprof simulate traces/demo --policy static lru lfu optimum --budget 10%,25%,50% \
            --plot policies.png
    """
    from moeprof.placement import check_free, write_whole
    from moeprof.plan import PHASE_CHOICES
    from moeprof.plan.simulation import SimulationRequest
    from moeprof.plan.simulation import simulate as replay_all
    from moeprof.plan.trace_facts import expert_bytes_in
    from moeprof.policies import parse_policy, user_policy
    from moeprof.trace import open_trace

    if phase is not None and phase not in PHASE_CHOICES:
        raise typer.BadParameter(f"{phase!r} is not one of {', '.join(PHASE_CHOICES)}")
    check_format(weight_format)
    rooms, per_layer = _names(budget, "--budget"), _names(slots, "--slots")
    named = [
        parse_policy(text) for text in _names([*(policy or []), *(policies or [])], "--policy")
    ]
    with redirect_stdout(sys.stderr):  # what a user's policy prints is no part of the answer
        named += [user_policy(text) for text in policy_file or []]
    if plot is not None:
        check_free(plot, force)
    opened = open_trace(trace)
    profile = machine(hardware, gpu, ram)
    if profile is not None or any(not text.endswith("%") for text in rooms):
        opened.require("expert_bytes", "neither a budget in bytes nor a speed means anything")
    expert_bytes = expert_bytes_in(opened.shape, weight_format)
    request = SimulationRequest(
        policies=tuple(named),
        budgets=_budgets(rooms, per_layer, opened.shape, expert_bytes),
        domain=domain,
        phase=phase,
        held_out=not all_documents,
        folds=folds,
        restart=restart,
        bounded=plot is not None,
        hardware=profile,
        weight_format=weight_format,
        seed=seed,
        threads=min(os.cpu_count() or 1, _MOST_THREADS),
    )
    with redirect_stdout(sys.stderr):
        simulation = replay_all(opened, request)
    for warning in simulation.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(simulation.to_json())
    else:
        _print_tables(simulation)
    if plot is not None:
        write_whole(plot, _picture(simulation))
        typer.echo(f"wrote {plot}", err=True)


def _names(texts: list[str] | None, option: str) -> list[str]:
    """What an option lists, with commas between; none where it is not given.

    Raises:
        typer.BadParameter: a name is empty.
    """
    names = [one.strip() for text in texts or [] for one in text.split(",")]
    if "" in names:
        raise typer.BadParameter("names nothing, or ends in a comma", param_hint=option)
    return names


def _budgets(
    rooms: list[str],
    per_layer: list[str],
    shape: "ModelShape",
    expert_bytes: tuple[int, ...],
) -> tuple[int, ...]:
    """Bytes of every budget that was asked for, ascending, each once."""
    sizes = set()
    for text in per_layer:
        if not text.isdecimal() or not 1 <= int(text) <= shape.num_experts:
            raise CapacityError(
                f"slots: {text!r} is no number of experts from 1 to {shape.num_experts}",
                "write it as --slots 8,16,32",
            )
        sizes.add(int(text) * sum(expert_bytes))
    texts = rooms if rooms or sizes else _BUDGETS.split(",")
    total = sum(expert_bytes) * shape.num_experts
    return tuple(sorted(sizes | {_budget_bytes(text, total) for text in texts}))


def _budget_bytes(text: str, total_bytes: int) -> int:
    from moeprof.units import parse_size

    if not text.endswith("%"):
        return parse_size(text)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise CapacityError(
            f"budget: {text!r} is no share of all experts from 0% to 100%",
            "write it as 25%, or as a size: 24GB",
        )
    return int(share * total_bytes)


def _print_tables(simulation: "Simulation") -> None:
    from moeprof.report.simulation_tables import simulation_tables

    table_console().print(simulation_tables(simulation), highlight=False)


def _picture(simulation: "Simulation") -> bytes:
    from moeprof.report.figures import png
    from moeprof.report.policy_figure import policy_figure

    return png(policy_figure(simulation))
