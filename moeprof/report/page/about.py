"""The section on the trace itself: what was traced, how much of it, and what to mind."""

from collections.abc import Iterator

from moeprof.report.page.inputs import PageInputs
from moeprof.report.page.parts import Cell, Column, Section, Table, sentence
from moeprof.trace.origin import UNSAID
from moeprof.units import format_count, format_size


def about_section(inputs: PageInputs) -> Section:
    """What everything above rests on."""
    domains = inputs.metadata.domains
    tokens = sum(sum(domain.tokens) for domain in domains)
    documents = sum(domain.documents for domain in domains)
    finding = (
        f"Everything above rests on {format_count(documents, 'document')} with "
        f"{format_count(tokens, 'token')} of {format_count(len(domains), 'kind')} of text."
    )
    settings = inputs.analysis.settings
    prose = (
        f"Intervals are 95 %, from {settings.resamples} bootstrap resamples of documents; held-out "
        f"figures from up to {settings.folds} folds over documents; seed {settings.seed}.",
        *_origin(inputs),
        *inputs.analysis.notes,
        *_of_plan(inputs),
    )
    return Section("trace", "Trace", finding, prose, (), (_domains(inputs), _model(inputs)))


def _of_plan(inputs: PageInputs) -> Iterator[str]:
    """The notes of the plan, on its speeds only where they stand on the page."""
    for note in () if inputs.placement is None else inputs.placement.notes:
        if not note.startswith("tokens/s"):
            yield sentence(note)
        elif inputs.is_plan_priced:
            yield f"Of the plan: {note}."


def _origin(inputs: PageInputs) -> tuple[str, ...]:
    """Where an imported trace comes from, and what that leaves unsaid."""
    origin = inputs.metadata.origin
    if origin is None:
        return ()
    files = ", ".join(origin.files)
    if not origin.missing:
        return (f"Imported from {origin.format} ({files}).",)
    unsaid = "; ".join(UNSAID[word] for word in origin.missing)
    return (f"Imported from {origin.format} ({files}), which does not say: {unsaid}.",)


def _domains(inputs: PageInputs) -> Table:
    columns = (
        Column("text", numeric=False),
        Column("documents"),
        Column("prefill tokens"),
        Column("decode tokens"),
        Column("from", numeric=False),
    )
    rows = tuple(
        (
            Cell(domain.name),
            Cell(f"{domain.documents:,}", domain.documents),
            *(Cell(f"{count:,}", count) for count in domain.tokens),
            Cell(", ".join(domain.sources)),
        )
        for domain in inputs.metadata.domains
    )
    return Table("What was traced", columns, rows)


def _dense_size(inputs: PageInputs) -> str:
    """Bytes outside the experts, as far as the trace says."""
    stated = inputs.metadata.shape.dense_bytes
    if "dense_bytes" not in inputs.metadata.missing:
        return format_size(stated)
    return f"at least {format_size(stated)}" if stated else "unknown"


def _model(inputs: PageInputs) -> Table:
    shape, capture = inputs.metadata.shape, inputs.metadata.capture
    size = format_size(shape.total_expert_bytes) if inputs.has_bytes else "of unknown size"
    facts = (
        ("model", inputs.metadata.model.name),
        ("type", shape.model_type),
        ("MoE layers", f"{shape.num_moe_layers} of {shape.num_layers}"),
        ("experts of a layer", f"{shape.num_experts}, {shape.top_k} chosen per token"),
        ("experts altogether", f"{shape.num_cells:,}, {size}"),
        ("everything else", _dense_size(inputs)),
        ("fingerprint", inputs.metadata.model.fingerprint or "unknown"),
        ("traced on", f"{capture.device} in {capture.dtype}"),
        ("context", f"{capture.sequence_length:,} tokens"),
    )
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    columns = (Column("fact", numeric=False), Column("value", numeric=False))
    return Table("The model and the capture", columns, rows, folded=True)
