"""What a layer's experts take on each tier: for one token, and for many."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from moeprof.checkpoint.modules import find_moe_layers
from moeprof.placement.tier import Tier
from moeprof.runtime.dictation import Dictation, Routing
from moeprof.runtime.model import SplitModel

_WARM_UPS = 3
_REPEATS = 25
_BATCH_WARM_UPS = 1
_BATCH_REPEATS = 9
_TOKEN_IDS = 64  # that forwards are fed
# Tokens of each expert: a few, and about as many as a prompt of 2,000 tokens gives one of 128.
BATCHES = (16, 128)


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of n pieces of work: `fixed_s + slope_s * n`."""

    fixed_s: float
    slope_s: float

    @classmethod
    def through(
        cls, points: Mapping[int, float], least_slope_s: float = 0.0, least_fixed_s: float = 0.0
    ) -> "Line":
        """The line through the times of the fewest and of the most pieces.

        Args:
            points: seconds by number of pieces; of a single number, all is slope.
            least_slope_s: what the slope is at least, whatever was timed.
            least_fixed_s: what the fixed part is at least.
        """
        fewest, most = min(points), max(points)
        rise = points[most] - points[fewest]
        slope = rise / (most - fewest) if most > fewest else points[most] / most
        slope = max(slope, least_slope_s)
        return cls(max(points[fewest] - fewest * slope, least_fixed_s), slope)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Median seconds while decoding.

    Attributes:
        most: the largest number of experts timed.
        dense_s: of one token outside the experts modules.
        layer_s: of the experts of one layer.
    """

    most: int
    dense_s: float
    layer_s: Mapping[Routing, float]

    def lines(self, shortest_s: Mapping[Tier, float]) -> dict[Tier, Line]:
        """Seconds of a layer by its number of experts of a tier.

        Args:
            shortest_s: what one expert of each tier takes at least, to be read.
        """
        return {tier: Line.through(self._points(tier), shortest_s[tier]) for tier in shortest_s}

    def overlaps(self, lines: Mapping[Tier, Line]) -> bool:
        """Whether a layer with both tiers takes the longer part rather than the sum of both."""
        halves = _halves(self.most)
        fixed = lines[Tier.VRAM].fixed_s
        vram = lines[Tier.VRAM].slope_s * halves.num_vram
        ram = lines[Tier.RAM].slope_s * halves.num_ram + max(0.0, lines[Tier.RAM].fixed_s - fixed)
        together = self.layer_s[halves] - fixed
        return abs(together - max(vram, ram)) < abs(together - vram - ram)

    def _points(self, tier: Tier) -> dict[int, float]:
        return {count: self.layer_s[_of_tier(tier, count)] for count in (1, self.most)}


@dataclass(frozen=True, slots=True)
class Prefilling:
    """Median seconds of batches, by the number of tokens that each of their experts is given.

    Attributes:
        num_layers: MoE layers.
        dense_s: of a batch outside the experts modules.
        layer_s: of the experts of one layer.
    """

    num_layers: int
    dense_s: Mapping[int, float]
    layer_s: Mapping[Routing, float]

    def lines(self, shortest_s: Mapping[Tier, float]) -> dict[Tier, Line]:
        """Seconds of one expert of a tier by its number of tokens.

        Args:
            shortest_s: what one expert of each tier takes at least, to be read.
        """
        return {
            tier: Line.through(
                {n: self._layer(tier, n, least).slope_s for n in self.dense_s}, 0.0, least
            )
            for tier, least in shortest_s.items()
        }

    def outside(self, shortest_s: Mapping[Tier, float]) -> Line:
        """Seconds of a batch by its number of tokens, less what grows with the experts it uses."""
        least = shortest_s[Tier.VRAM]
        fixed_s = {n: self._layer(Tier.VRAM, n, least).fixed_s for n in self.dense_s}
        return Line.through(
            {2 * n: self.dense_s[n] + self.num_layers * fixed_s[n] for n in self.dense_s}
        )

    def _layer(self, tier: Tier, num_tokens: int, least_s: float) -> Line:
        """Seconds of a layer by its number of experts, each of which is given so many tokens."""
        found = {
            routing.num_experts: seconds
            for routing, seconds in self.layer_s.items()
            if routing.num_tokens == num_tokens and routing == _like(routing, tier)
        }
        return Line.through(found, least_s)


def time_decoding(loaded: SplitModel, most: int) -> Decoding:
    """Decode tokens whose experts are dictated, and time the inside and the outside of layers.

    Args:
        loaded: the model.
        most: experts of a token at most.
    """
    tiers = (Tier.VRAM, Tier.RAM)
    routings = {_of_tier(tier, count) for tier in tiers for count in (1, most)}
    routings.add(_halves(most))
    in_turn = sorted(routings, key=lambda routing: (routing.num_vram, routing.num_ram))
    dense = []
    step = loaded.forward([1, 2, 3, 4], "prefill")
    num_forwards = _WARM_UPS + _forwards_for(loaded, _REPEATS, len(in_turn))
    with Dictation(loaded, in_turn, 1) as dictation:
        for turn in range(num_forwards):
            dictation.start_forward(measured=turn >= _WARM_UPS)
            loaded.synchronize()
            begin = time.perf_counter()
            step = loaded.forward([turn % _TOKEN_IDS], "decode", step.cache, 4 + turn)
            loaded.synchronize()
            if turn >= _WARM_UPS:
                dense.append(time.perf_counter() - begin - dictation.inside_s)
    return Decoding(most, statistics.median(dense), dictation.medians())


def time_prefilling(loaded: SplitModel, most: int) -> Prefilling:
    """Feed batches whose experts are dictated, and time the inside and the outside of layers.

    For n of `BATCHES`, a batch has 2 n tokens: n of them go to `most` experts, or all of them to
    twice as many, of one tier; so an expert is given n tokens each time.

    Args:
        loaded: the model.
        most: experts of a token at most: half of those in a tier, rounded down.
    """
    layer_s: dict[Routing, float] = {}
    dense_s = {}
    for num_tokens in BATCHES:
        counts = {max(1, most): max(1, most), max(1, 2 * most): max(1, most)}
        routings = [
            _of_tier(tier, count, num_tokens, slots)
            for tier in (Tier.VRAM, Tier.RAM)
            for count, slots in counts.items()
        ]
        token_ids = [turn % _TOKEN_IDS for turn in range(2 * num_tokens)]
        dense = []
        num_forwards = _BATCH_WARM_UPS + _forwards_for(loaded, _BATCH_REPEATS, len(routings))
        with Dictation(loaded, routings, len(token_ids)) as dictation:
            for turn in range(num_forwards):
                dictation.start_forward(measured=turn >= _BATCH_WARM_UPS)
                loaded.synchronize()
                begin = time.perf_counter()
                loaded.forward(token_ids, "prefill", keep_cache=False)
                loaded.synchronize()
                if turn >= _BATCH_WARM_UPS:
                    dense.append(time.perf_counter() - begin - dictation.inside_s)
        dense_s[num_tokens] = statistics.median(dense)
        layer_s.update(dictation.medians())
    return Prefilling(len(find_moe_layers(loaded.model)), dense_s, layer_s)


def _forwards_for(loaded: SplitModel, repeats: int, num_routings: int) -> int:
    """Forwards in which every routing has its turn so many times."""
    return -(-repeats * num_routings // len(find_moe_layers(loaded.model)))


def _of_tier(tier: Tier, count: int, num_tokens: int = 1, slots: int | None = None) -> Routing:
    num_vram, num_ram = (count, 0) if tier is Tier.VRAM else (0, count)
    return Routing(num_vram, num_ram, num_tokens, slots or count)


def _like(routing: Routing, tier: Tier) -> Routing:
    return _of_tier(tier, routing.num_experts, routing.num_tokens, routing.num_slots)


def _halves(most: int) -> Routing:
    return Routing.of_token(most // 2, most - most // 2)
