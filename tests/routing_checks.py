"""What must hold of the recorded routing of any model; shared by the short and the whole test."""

from collections.abc import Callable
from typing import Any

import torch
from architectures import VOCABULARY, tiny_model
from routing_oracle import Usage, observe
from torch import Tensor, nn

from moeprof.capture.routing import Routed, RoutingTap, moe_shape
from moeprof.native import NO_EXPERT

_LENGTHS = (9, 6)
_NEW_TOKENS = 4

# A token's routing depends on the other tokens of its forward, so alone it is another.
NOT_CAUSAL = {"doge": "the block splits its router logits across tokens"}


def check_architecture(model_type: str) -> None:
    """Recorded ids and weights equal what the model used, in a padded batch and in generation."""
    model = tiny_model(model_type)
    check_padded_batch(model, alone=model_type not in NOT_CAUSAL)
    check_generation(model)


def record(model: nn.Module, run: Callable[[], Any]) -> tuple[RoutingTap, list[Routed], Any]:
    """The tap, the routing of every forward inside `run`, and what `run` returned."""
    taken: list[Routed] = []
    with RoutingTap(model) as tap, torch.no_grad():
        handle = model.register_forward_hook(lambda *_: taken.append(tap.take()))
        try:
            result = run()
        finally:
            handle.remove()
    return tap, taken, result


def padded_batch() -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [2, 9] of two sequences, the shorter padded on the right."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (len(_LENGTHS), max(_LENGTHS)), generator=generator)
    mask = (torch.arange(max(_LENGTHS)) < torch.tensor(_LENGTHS)[:, None]).long()
    return ids * mask, mask


def check_padded_batch(model: nn.Module, alone: bool) -> None:
    """Real rows equal the oracle's and, if asked, those of each sequence alone."""
    ids, mask = padded_batch()

    def run() -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits

    tap, (routed,), tapped_logits = record(model, run)
    with torch.no_grad():
        assert torch.equal(run(), tapped_logits), "recording changed the logits"
    assert moe_shape(model) == (tap.layers, tap.num_experts)
    real = mask.bool().flatten()
    seen = observe(model, run)
    assert tuple(seen) == tap.layers
    for row, layer in enumerate(tap.layers):
        (usage,) = seen[layer]
        check_same(usage, routed.ids[row], routed.weights[row], real)
    if alone:
        check_one_by_one(model, routed, real)


def check_one_by_one(model: nn.Module, batch: Routed, real: Tensor) -> None:
    """The real rows [T] of the batch routed as each sequence does without padding."""
    ids, _ = padded_batch()
    _, num_experts = moe_shape(model)
    single = [
        record(model, lambda n=n, length=length: model(input_ids=ids[n : n + 1, :length]))[1][0]
        for n, length in enumerate(_LENGTHS)
    ]
    ids_alone = torch.cat([routed.ids for routed in single], dim=1)
    weights_alone = torch.cat([routed.weights for routed in single], dim=1)
    torch.testing.assert_close(
        dense(batch.ids[:, real], batch.weights[:, real], num_experts),
        dense(ids_alone, weights_alone, num_experts),
        rtol=1e-3,
        atol=1e-4,
    )


def check_generation(model: nn.Module) -> None:
    """Every forward of a greedy generation equals the oracle's, prompt and single tokens."""
    prompt = torch.randint(3, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(3))

    def run() -> Tensor:
        return model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            num_beams=1,
        )

    tap, taken, tokens = record(model, run)
    with torch.no_grad():
        assert torch.equal(run(), tokens), "recording changed the generated tokens"
    assert [routed.ids.shape[1] for routed in taken] == [10] + [2] * (_NEW_TOKENS - 1)
    seen = observe(model, run)
    assert tuple(seen) == tap.layers
    for row, layer in enumerate(tap.layers):
        for usage, routed in zip(seen[layer], taken, strict=True):
            every = torch.ones(routed.ids.shape[1], dtype=torch.bool)
            check_same(usage, routed.ids[row], routed.weights[row], every)


def check_same(usage: Usage, ids: Tensor, weights: Tensor, rows: Tensor) -> None:
    """Recorded ids [T, K] and weights [T, K] explain what the oracle saw of the rows [T]."""
    num_experts = usage.used.shape[1]
    assert bool(((ids < num_experts) | (ids == NO_EXPERT)).all())
    chosen = dense(ids, torch.ones_like(weights), num_experts)
    assert int(chosen.max()) <= 1, "an expert stands twice in a row"
    assert torch.equal(chosen[rows].bool(), usage.used[rows])
    applied = dense(ids, weights, num_experts)
    for expert in range(num_experts):
        users = rows & usage.used[:, expert]
        expected = usage.contribution(usage.hidden[users], expert, applied[users, expert])
        observed = usage.changes[users, expert]
        error = (observed - expected).norm(dim=-1)
        assert bool((error <= 1e-3 * observed.norm(dim=-1)).all()), f"weights of expert {expert}"


def dense(ids: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """[..., K] ids and weights as one row of weights [..., E] for each token."""
    table = torch.zeros((*ids.shape[:-1], num_experts + 1))
    return table.scatter_add_(-1, ids.clamp(max=num_experts), weights)[..., :num_experts]
