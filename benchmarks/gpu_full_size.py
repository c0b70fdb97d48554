"""A model of full size with its experts split, against simpler splits and the roofline.

    python benchmarks/gpu_full_size.py --output DIR [--formats q4_0 q8_0]

The shape of Qwen3-30B-A3B with random weights, made on the machine. Routers are biased so that the
busiest 1/5/10/15/20 % of cells carry about 17/46/64/75/83 % of the assignments, as counted for
Qwen3-Coder-Next. For 0, 25, 50, 75 and 100 % of the expert bytes in VRAM the busiest cells, the
first whole layers and as many cells of every layer are kept there: a prompt of 512 tokens is
prefilled, then tokens are decoded one at a time. Prints a table and writes DIR/gpu_full_size.json.
"""

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from moeprof.checkpoint.modules import find_moe_layers
from moeprof.checkpoint.packed_shape import expert_parameters
from moeprof.model_shape import ModelShape
from moeprof.native import _cuda
from moeprof.placement.tier import Tier
from moeprof.runtime.decoding import Decoder
from moeprof.runtime.experts import IMPLEMENTATION, attach
from moeprof.runtime.meter import Meter
from moeprof.runtime.split import ExpertsRequest, PackedExperts
from moeprof.runtime.stores import SlotTable

CONFIG = Qwen3MoeConfig(
    vocab_size=151936,
    hidden_size=2048,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    tie_word_embeddings=False,
)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
CARRIED = {0.01: 0.17, 0.05: 0.46, 0.10: 0.64, 0.15: 0.75, 0.20: 0.83, 1.0: 1.0}
PROMPT_TOKENS, CONTEXT_TOKENS = 512, 1024
PREFILLS = 5  # after one that is not counted
DISTINCT_EXPERTS = 32
LLAMA_CPP = {  # tokens/s on this kind of machine with llama.cpp, from the issue
    "q4_0": {"decode": (39, 54, 74, 109, 335), "prefill": (4510, 5038, 6060, 6962, 11422)},
    "q8_0": {"decode": (30, 40, 54, 73, 280), "prefill": (3217, 3843, 4420, 5575, 10630)},
}


class BiasedRouter(nn.Module):
    """Qwen3's router, its logits biased."""

    def __init__(self, weight: Tensor, bias: Tensor, top_k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.top_k = top_k

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, weights and ids of the chosen experts."""
        rows = hidden_states.reshape(-1, self.weight.shape[1])
        logits = nn.functional.linear(rows, self.weight, self.bias)
        weights, ids = logits.float().softmax(-1).topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights.to(logits.dtype), ids


def wanted_shares(num_experts: int) -> np.ndarray:
    """[E] share of a layer's assignments, the busiest expert first, that gives `CARRIED`."""
    places = np.array([0.0, *CARRIED])
    carried = np.interp(np.arange(num_experts + 1) / num_experts, places, [0.0, *CARRIED.values()])
    return np.sort(np.diff(carried))[::-1]


def fit_biases(spread: float, top_k: int, rng: np.random.Generator) -> np.ndarray:
    """[E] biases of logits with this standard deviation that lead to `wanted_shares`."""
    wanted = wanted_shares(CONFIG.num_experts)
    wanted = np.minimum(wanted, 0.98 / top_k)
    noise = rng.standard_normal((4096, CONFIG.num_experts)) * spread
    biases = np.log(wanted / wanted.mean()) * spread
    for _ in range(200):
        chosen = np.argpartition(-(noise + biases), top_k, axis=1)[:, :top_k]
        found = np.bincount(chosen.ravel(), minlength=CONFIG.num_experts) / chosen.size
        biases += 0.2 * spread * (np.log(wanted) - np.log(np.maximum(found, 1e-6)))
    return biases


def make_model(rng: np.random.Generator) -> tuple[nn.Module, list, np.ndarray]:
    """The model on the device without experts, its experts modules as shells, and [L, E] ranks."""
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM._from_config(CONFIG, dtype=torch.bfloat16).eval()
        skeleton = Qwen3MoeForCausalLM._from_config(CONFIG, dtype=torch.bfloat16).eval()
    for experts in find_moe_layers(model):
        for name in expert_parameters(experts.module):
            setattr(experts.module, name, nn.Parameter(torch.empty(0), requires_grad=False))
    model = model.to_empty(device="cuda")
    model.model.rotary_emb = type(model.model.rotary_emb)(CONFIG).to("cuda")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, 0.02)
    ranks = np.stack([rng.permutation(CONFIG.num_experts) for _ in range(CONFIG.num_hidden_layers)])
    spread = 0.02 * CONFIG.hidden_size**0.5
    biases = fit_biases(spread, CONFIG.num_experts_per_tok, rng)
    for layer, order in zip(model.model.layers, ranks, strict=True):
        bias = torch.from_numpy(biases[order]).to("cuda", torch.bfloat16)
        layer.mlp.gate = BiasedRouter(layer.mlp.gate.weight.data, bias, CONFIG.num_experts_per_tok)
    return model, find_moe_layers(skeleton), ranks


def make_experts(modules: list, weight_format: str, rng: np.random.Generator) -> PackedExperts:
    """All experts on the host and all of them in VRAM: a split is then a matter of slot tables."""
    layers = tuple(range(CONFIG.num_hidden_layers))
    shape = ModelShape(
        model_type="qwen3_moe",
        num_layers=len(layers),
        moe_layers=layers,
        num_experts=CONFIG.num_experts,
        top_k=CONFIG.num_experts_per_tok,
        hidden_size=CONFIG.hidden_size,
        vocab_size=CONFIG.vocab_size,
        expert_bytes=(1,) * len(layers),
        dense_bytes=0,
        dtype="bfloat16",
    )
    everywhere = np.full((len(layers), CONFIG.num_experts), Tier.VRAM, np.uint8)
    experts = PackedExperts(
        ExpertsRequest(
            modules=modules,
            shape=shape,
            table=SlotTable.from_tiers(everywhere),
            device=torch.device("cuda"),
            weight_format=weight_format,
            num_threads=None,
            meter=Meter(shape),
            movable=True,
        )
    )
    hidden, width = CONFIG.hidden_size, CONFIG.moe_intermediate_size
    for index in range(DISTINCT_EXPERTS):
        drawn = torch.from_numpy(rng.standard_normal((3, width * hidden), np.float32)) * 0.02
        experts.put(
            0,
            index,
            {
                "gate_up_proj": drawn[:2].reshape(2 * width, hidden),
                "down_proj": drawn[2].reshape(hidden, width),
            },
        )
    packed = [experts.packed(0, index).copy() for index in range(DISTINCT_EXPERTS)]
    for row in layers:
        for expert in range(CONFIG.num_experts):
            experts.put_packed(row, expert, packed[(row * 7 + expert) % DISTINCT_EXPERTS])
    return experts


def splits(ranks: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """[L, E] tiers of each way to keep this share of the cells in VRAM."""
    num_layers, num_experts = ranks.shape
    ways = {}
    if share in (0.0, 1.0):
        return {"all in VRAM" if share else "all in RAM": ranks < share * num_experts}
    ways["busiest cells"] = ranks < round(share * num_experts)
    first = np.zeros(ranks.shape, bool)
    first[: round(share * num_layers)] = True
    ways["first layers"] = first
    ways["same of each layer"] = np.arange(num_experts)[None] < np.full_like(
        ranks, round(share * num_experts)
    )
    return ways


def tell(experts: PackedExperts, in_vram: np.ndarray) -> None:
    """Let the device believe that only these cells are in VRAM."""
    experts.table = SlotTable(
        np.where(in_vram, Tier.VRAM, Tier.RAM).astype(np.uint8), experts.table.slot
    )
    experts.tell_slots()


def device_bandwidth(experts: PackedExperts) -> float:
    """Bytes per second of a plain read of all experts in VRAM."""
    memory = experts.stores[Tier.VRAM].memory
    result = torch.zeros(1, dtype=torch.int64, device="cuda")
    times = []
    for _ in range(7):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        stream = torch.cuda.current_stream().cuda_stream
        _cuda.xor_words(memory.data_ptr(), memory.numel() // 64 * 64, result.data_ptr(), stream)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return memory.numel() / statistics.median(times)


def measure_prefill(
    decoder: Decoder, experts: PackedExperts, meter: Meter, prompt: list[int]
) -> dict[str, object]:
    """Tokens per second of a prompt, and what it reads."""
    times = []
    for _ in range(1 + PREFILLS):
        meter.reset()
        meter.begin("prefill", len(prompt))
        torch.cuda.synchronize()
        begun = time.perf_counter()
        decoder.prefill(prompt)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    experts.check()
    meter.collect()
    away = experts.table.tier != Tier.VRAM
    size = np.array(experts.expert_bytes)[:, None]
    return {
        "prefill_ms": [round(seconds * 1e3, 2) for seconds in times],
        "prefill_tokens_per_s": len(prompt) / statistics.median(times[1:]),
        "prefill_experts_per_layer": float((meter.reads[0] > 0).sum(axis=1).mean()),
        "prefill_ram_bytes": int(((meter.reads[0] > 0) * size * away).sum()),
    }


def measure(
    decoder: Decoder, experts: PackedExperts, meter: Meter, prompt: list[int], steps: int
) -> dict[str, object]:
    """Tokens per second of decoding after a prompt, and bytes read per decoded token."""
    meter.begin("prefill", len(prompt))
    decoder.prefill(prompt)
    for _ in range(4):
        decoder.step()
    torch.cuda.synchronize()
    meter.reset()
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        decoder.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    experts.check()
    meter.collect()
    counts = meter.reads[1]
    size = np.array(experts.expert_bytes)[:, None]
    resident = experts.table.tier == Tier.VRAM
    ordered = np.sort(meter.assignments[1].ravel())[::-1]
    return {
        "decode_ms": statistics.median(times) * 1e3,
        "decode_tokens_per_s": 1 / statistics.median(times),
        "vram_bytes": (counts * size * resident).sum(axis=1) / steps,
        "ram_bytes": (counts * size * ~resident).sum(axis=1) / steps,
        "hit_rate": float((counts * resident).sum() / counts.sum()),
        "carried_20": float(ordered[: len(ordered) // 5].sum() / ordered.sum()),
    }


def say(line: str) -> None:
    """Show how far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run_format(weight_format: str, steps: int) -> dict[str, object]:
    """Every split of one format."""
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    model, modules, ranks = make_model(rng)
    experts = make_experts(modules, weight_format, rng)
    for found, layer in zip(find_moe_layers(model), experts.layers(), strict=True):
        attach(found.module, layer)
    model.set_experts_implementation(IMPLEMENTATION)
    meter = experts.meter
    meter.begin("decode", 0)
    made_s = time.perf_counter() - begun
    begun = time.perf_counter()
    decoder = Decoder(model, CONTEXT_TOKENS, CONFIG.num_experts)
    ready_s = time.perf_counter() - begun
    say(f"{weight_format}: made in {made_s:.0f} s, decoder ready in {ready_s:.0f} s")
    say(f"captured {decoder.is_captured}, compiled {decoder.is_compiled} {decoder.notes}")
    vram, ram = device_bandwidth(experts), experts.read_bandwidth()
    dense = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
    prompt = rng.integers(0, CONFIG.vocab_size, PROMPT_TOKENS).tolist()
    rows = []
    for index, share in enumerate(SHARES):
        for name, in_vram in splits(ranks, share).items():
            tell(experts, in_vram)
            theirs = {k: v[index] for k, v in LLAMA_CPP.get(weight_format, {}).items()}
            row: dict[str, object] = {"share": share, "split": name, "llama_cpp": theirs}
            row |= measure_prefill(decoder, experts, meter, prompt)
            if steps:
                row |= measure(decoder, experts, meter, prompt, steps)
                layers = np.maximum(row.pop("vram_bytes") / vram, row.pop("ram_bytes") / ram)
                roofline = float(1 / (layers.sum() + dense / vram))
                row["roofline_tokens_per_s"] = roofline
                row["roofline_over_measured"] = roofline / row["decode_tokens_per_s"]
            rows.append(row)
            say(json.dumps(row))
    return {
        "made_s": made_s,
        "ready_s": ready_s,
        "notes": decoder.notes,
        "vram_bytes_per_s": vram,
        "ram_bytes_per_s": ram,
        "dense_bytes": dense,
        "rows": rows,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--formats", nargs="+", default=["q4_0", "q8_0"])
    parser.add_argument("--steps", type=int, default=48, help="Decoded tokens; 0: prefill only.")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    for weight_format in arguments.formats:
        with torch.inference_mode(False), torch.no_grad():
            result[weight_format] = run_format(weight_format, arguments.steps)
        torch.cuda.empty_cache()
        (arguments.output / "gpu_full_size.json").write_text(json.dumps(result, indent=1) + "\n")
    console = Console(width=150)
    for weight_format in arguments.formats:
        found = result[weight_format]
        table = Table(title=f"{result['device']}, {weight_format}, tokens/s")
        names = ["VRAM", "split", "prefill", "llama.cpp", "RAM GB", "experts"]
        if arguments.steps:
            names += ["decode", "roofline", "over", "llama.cpp", "hits"]
        for name in names:
            table.add_column(name)
        for row in found["rows"]:
            cells = [
                f"{row['share']:.0%}",
                row["split"],
                f"{row['prefill_tokens_per_s']:.0f}",
                str(row["llama_cpp"].get("prefill", "-")),
                f"{row['prefill_ram_bytes'] / 1e9:.1f}",
                f"{row['prefill_experts_per_layer']:.0f}",
            ]
            if arguments.steps:
                cells += [
                    f"{row['decode_tokens_per_s']:.1f}",
                    f"{row['roofline_tokens_per_s']:.1f}",
                    f"{row['roofline_over_measured']:.2f}",
                    str(row["llama_cpp"].get("decode", "-")),
                    f"{row['hit_rate']:.0%}",
                ]
            table.add_row(*cells)
        console.print(table)


if __name__ == "__main__":
    main()
