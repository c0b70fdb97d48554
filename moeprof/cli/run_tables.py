"""The report of a run as text for the terminal."""

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from moeprof.placement.manifest import Estimate
from moeprof.runtime.formats import STORED
from moeprof.runtime.layer_times import LayerTime, LayerTimes
from moeprof.runtime.report import HOST_ONLY, ReplayReport, RunReport
from moeprof.runtime.vram import VramReport
from moeprof.units import format_ms, format_size

_ENDED_EARLY = {
    "context": "the text ends where the planned context does; plan with a larger --context",
    "positions": "the text ends where the context does that the model was made for "
    "(max_position_embeddings)",
    "interrupt": "the text ends where it was interrupted",
}


def print_report(report: RunReport, console: Console) -> None:
    """Print tiers, phases with predicted beside measured, and the comparison with a trace."""
    if report.host_only:
        console.print(f"note: {HOST_ONLY}", highlight=False, soft_wrap=True)
    console.print(_tiers(report))
    if report.vram is not None:
        console.print(_vram(report.vram), highlight=False, soft_wrap=True)
    console.print(_phases(report))
    if report.stopped_by in _ENDED_EARLY:
        note = _ENDED_EARLY[report.stopped_by]
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if report.layer_times is not None:
        _print_layer_times(report.layer_times, console)
    if report.replay is not None:
        console.print(_hits(report.replay))
        console.print(_verdict(report.replay, is_exact=report.replay_is_exact), highlight=False)


def _tiers(report: RunReport) -> Table:
    held = report.dtype if report.weight_format == STORED else report.weight_format
    title = f"{report.model} in {report.dtype} on {report.device}, experts in {held}"
    if report.dense_format != STORED:
        title += f", linear layers outside in {report.dense_format}"
    table = Table(title=title, title_justify="left")
    table.add_column("tier")
    table.add_column("lives on")
    for name in ("experts", "planned", f"allocated, {held}"):
        table.add_column(name, justify="right")
    for name, tier in report.tiers.items():
        table.add_row(
            name,
            tier.device,
            str(tier.experts),
            format_size(tier.planned_bytes),
            format_size(tier.allocated_bytes),
        )
    return table


def _vram(vram: VramReport) -> str:
    return (
        f"vram: {format_size(vram.loaded_bytes)} loaded, {format_size(vram.planned_bytes)} "
        f"planned; {format_size(vram.needed_bytes)} with KV cache, workspace and context, of "
        f"{format_size(vram.budget_bytes)}; {format_size(vram.free_bytes)} free on the card"
    )


def _phases(report: RunReport) -> Table:
    title = "measured (m) beside predicted (p)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for phase in report.phases:
        table.add_column(phase, justify="right")
    found = list(report.phases.values())
    rows = {
        "tokens": [f"{phase.tokens}" for phase in found],
        "tokens of a prompt m": [_number(phase.prompt_tokens) for phase in found],
        "tokens of a prompt p": [_number(phase.predicted_prompt_tokens) for phase in found],
        "tokens/s m": [_number(phase.tokens_per_s) for phase in found],
        "tokens/s p": [_estimate(phase.predicted_tokens_per_s, _number) for phase in found],
        "vram hit rate m": [_percent(phase.hit_rate) for phase in found],
        "vram hit rate p, new text": [
            _estimate(phase.predicted_hit_rate, _percent) for phase in found
        ],
        "coverage p, in-sample": [_percent(phase.predicted_coverage) for phase in found],
    }
    for tier in report.tiers:
        rows[f"{tier} hits m"] = [f"{phase.hits[tier]}" for phase in found]
        rows[f"{tier} bytes/token m"] = [
            format_size(phase.bytes_read_per_token[tier]) for phase in found
        ]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _print_layer_times(times: LayerTimes, console: Console) -> None:
    if times.layers:
        console.print(_layer_times(times))
    if times.note is not None:
        console.print(f"note: {times.note}", highlight=False, soft_wrap=True)


def _layer_times(times: LayerTimes) -> Table:
    title = "milliseconds of one decoded token"
    if times.tiers_overlap:
        title += "; RAM experts run beside VRAM experts and waiting"
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    for name in ("dense", "VRAM experts", "RAM experts", "waiting"):
        table.add_column(name, justify="right")
    rows = {f"{layer.layer}": _parts(layer) for layer in times.layers}
    rows["sum"] = tuple(math.fsum(parts) for parts in zip(*rows.values(), strict=True))
    rows["after the last"] = (times.rest_s,)
    for name, parts in rows.items():
        table.add_row(name, *(format_ms(part) for part in parts))
    return table


def _parts(time: LayerTime) -> tuple[float, ...]:
    return time.dense_s, time.vram_s, time.ram_s, time.waiting_s


def _hits(replay: ReplayReport) -> Table:
    title = f"replay of {replay.documents} documents of {replay.trace}"
    table = Table(title=title, title_justify="left")
    for name in ("phase", "tier"):
        table.add_column(name)
    for name in ("hits p", "hits m"):
        table.add_column(name, justify="right")
    for phase, tiers in replay.predicted_hits.items():
        for tier, predicted in tiers.items():
            measured = replay.measured_hits.get(phase, {}).get(tier, 0)
            table.add_row(phase, tier, str(predicted), str(measured))
    return table


def _verdict(replay: ReplayReport, *, is_exact: bool) -> str:
    if replay.equal:
        return "replay: every assignment went to the expert that the trace says"
    total = sum(sum(tiers.values()) for tiers in replay.predicted_hits.values())
    lines = [
        f"replay: {replay.moved_assignments} of {total} assignments went to another expert than in "
        "the trace"
    ]
    if not is_exact:
        lines.append(
            f"note: the trace was recorded in {replay.trace_dtype}, in which selections depend on "
            "batch and kernels; trace and replay in float32 for hits that must be equal"
        )
        return "\n".join(lines)
    lines += [
        f"  {d.phase} layer {d.layer} {d.tier}: predicted {d.predicted}, measured {d.measured}"
        for d in replay.differences
    ]
    lines.append(
        "hint: routing differs in another --dtype or on another device, and on weights that have "
        "changed since the trace"
    )
    return "\n".join(lines)


def _estimate(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return text(estimate.value)
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"
