"""What advice rests on, and what is missing from it, in sentences."""

from collections.abc import Iterator

from moeprof.hardware import HardwareProfile
from moeprof.plan.evaluated import Evaluated
from moeprof.plan.request import AdviceRequest
from moeprof.plan.routed import DECODE, PREFILL, Sample
from moeprof.trace import Trace
from moeprof.trace.origin import UNSAID
from moeprof.units import format_count, format_size

SOURCES = {"measured": "measured", "data-sheet": "from data sheets, not measured"}


def rests_on(
    trace: Trace, sample: Sample, evaluated: Evaluated, request: AdviceRequest
) -> Iterator[str]:
    """What the figures were computed from.

    Args:
        trace: that was read.
        sample: what was made of it.
        evaluated: the trials under the budget.
        request: what was asked for.
    """
    yield _documents(trace, sample, evaluated)
    profile = request.plan.hardware
    if profile is not None:
        yield f"times of {profile.name}, {SOURCES[profile.source]}"
    if profile is not None and not profile.links and not profile.tiers_overlap:
        yield "on that machine both tiers are memory of the host, which says nothing of a GPU"
    if profile is not None and sample.routed is None:
        yield "tokens/s are as if a token's experts were chosen independently of each other"
    if profile is not None and evaluated.is_priced(PREFILL):
        yield (
            "a prompt's experts are computed where they lie or copied into VRAM, whichever is "
            "faster"
        )
    if profile is not None and evaluated.is_priced(PREFILL) and profile.dense_batch_time is None:
        yield "outside the experts a prompt takes the time of one token: its reading of weights"
    if any(trial.policy is not None for trial in evaluated.trials.values()):
        yield _caches(evaluated)


def _caches(evaluated: Evaluated) -> str:
    situation = evaluated.situation
    if len(situation.policies) == 1:
        words = "the cache"
    else:
        words = f"the best of {len(situation.policies)} caches is chosen on "
        text = "pieces" if situation.pieces else "documents"
        other = f"other {text} than it is scored on,"
        words += other if situation.split.num_folds else "the text that it is scored on,"
    return f"{words} begins with the hot set, and goes on from document to document as traced"


def missing(
    trace: Trace,
    sample: Sample,
    evaluated: Evaluated,
    request: AdviceRequest,
    has_model: bool,
) -> Iterator[str]:
    """What is not known, and what would tell.

    Args:
        trace: that was read.
        sample: what was made of it.
        evaluated: the trials under the budget.
        request: what was asked for.
        has_model: whether the checkpoint was at hand.
    """
    yield from _missing_of_machine(evaluated, request.plan.hardware)
    yield from _missing_of_trace(trace, sample)
    if has_model and "fingerprint" in trace.metadata.missing:
        yield "whether it is this checkpoint's trace: only its numbers of layers and experts fit"
    if not has_model:
        yield "KV cache and workspace, which need VRAM too: name the checkpoint with --model"
        if "dense_bytes" in trace.metadata.missing:
            yield f"weights outside the experts: the trace does not say {UNSAID['dense_bytes']}"


def _missing_of_machine(evaluated: Evaluated, profile: HardwareProfile | None) -> Iterator[str]:
    situation = evaluated.situation
    has_prompts = bool(situation.assignments(PREFILL).any())
    if profile is None:
        yield "tokens/s: name a machine with --hardware FILE, or with --gpu and --ram"
    elif has_prompts and not evaluated.is_priced(PREFILL):
        if situation.clocks.prefill is None:
            yield "prefill tokens/s: the machine's profile has no times of many tokens"
        else:
            yield "prefill tokens/s: counts do not say how many tokens a prompt has"
    if situation.total_bytes > situation.ram_bytes:
        yield f"caches: RAM cannot hold all experts, {format_size(situation.total_bytes)}"


def _missing_of_trace(trace: Trace, sample: Sample) -> Iterator[str]:
    if sample.stands_in:
        yield "replies: the trace has prompts alone, which stand in for them; use --generate"
    if "phase" in trace.metadata.missing:
        yield f"what of it are replies: the trace does not say {UNSAID['phase']}"
    if sample.pieces == 1:
        yield "documents: there is one token to go by, which tells nothing of others"
    elif sample.pieces:
        yield (
            f"documents: the only one is cut into {sample.pieces} pieces that stand for several, "
            "so that all of this holds for more of the same text only"
        )
    if sample.routed is None:
        word = "rows" if "rows" in trace.metadata.missing else "order"
        yield (f"caches, the oracle and a closer workload: the trace does not say {UNSAID[word]}")
    if not trace.metadata.complete:
        yield "the rest of the trace: moeprof trace --resume continues it"


def _documents(trace: Trace, sample: Sample, evaluated: Evaluated) -> str:
    situation = evaluated.situation
    phase = PREFILL if sample.stands_in else DECODE
    tokens = sum(domain.tokens[phase] for domain in trace.metadata.domains)
    documents = sum(domain.documents for domain in trace.metadata.domains)
    kind = "prompt token" if sample.stands_in else "reply token"
    text = (
        f"{format_count(tokens, 'token' if 'phase' in trace.metadata.missing else kind)} of "
        f"{format_count(documents, 'document')} in {format_count(len(trace.domains), 'domain')} of "
        f"{trace.name}"
    )
    if not situation.split.num_folds:
        return f"{text}; nothing could be held out"
    groups = len(situation.counts.group_domain)
    dealt = "" if groups >= documents else f", dealt to {groups} groups"
    return (
        f"{text}{dealt}, in {situation.split.num_folds} folds: what is scored was not learned from"
    )
