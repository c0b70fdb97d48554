"""Files of foreign formats, made as their engines make them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter

HIDDEN_LAYERS = 4
MOE_LAYERS = (1, 2, 3)
NUM_EXPERTS = 8
TOP_K = 2


def make_routing(num_tokens: int, seed: int = 0, num_experts: int = NUM_EXPERTS) -> np.ndarray:
    """[T, L, K] int64: distinct experts in the order of their scores, some preferred."""
    rng = np.random.default_rng(seed)
    scores = rng.gumbel(size=(num_tokens, len(MOE_LAYERS), num_experts))
    scores += np.linspace(2, 0, num_experts)
    return np.argsort(-scores, axis=2)[:, :, :TOP_K]


def route_trace(path: Path, prompt: np.ndarray, decoded: np.ndarray, turns: int = 1) -> Path:
    """As BigMoeOnEdge: the last layer computes only the last token of the prompt."""
    lines = [
        "# route_trace v1",
        f"# model=/models/tiny.gguf arch=qwen3moe n_layer={HIDDEN_LAYERS} "
        f"n_expert={NUM_EXPERTS} n_expert_used={TOP_K}",
        *(f"# layer={n} expert_bytes={1000 * n} dense_bytes=10" for n in range(HIDDEN_LAYERS)),
        "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped",
    ]
    step = 0
    for turn in range(turns):
        for row, layer in enumerate(MOE_LAYERS):
            last = layer == MOE_LAYERS[-1]
            for token in range(len(prompt) - 1 if last else 0, len(prompt)):
                for slot in range(TOP_K):
                    expert = prompt[token, row, slot]
                    cell = f"{turn},0,{step + token},{layer},{slot},{expert}"
                    lines.append(f"{cell},{0.5**slot},0,{1000 * layer},0")
        step += len(prompt)
        for token in range(len(decoded)):
            for row, layer in enumerate(MOE_LAYERS):
                for slot in range(TOP_K):
                    expert = decoded[token, row, slot]
                    lines.append(f"{turn},1,{step + token},{layer},{slot},{expert},nan,1,0,0")
        step += len(decoded)
    path.write_text("\n".join(lines) + "\n")
    return path


def moe_trace(path: Path, prompt: np.ndarray, decoded: np.ndarray, batch: int = 10**6) -> Path:
    """As llama-moe-trace: no header, prompt batches with negative positions, layer by layer."""
    lines = []
    for begin in range(0, len(prompt), batch):
        tokens = prompt[begin : begin + batch]
        for row, layer in enumerate(MOE_LAYERS):
            wanted = range(len(tokens))
            if layer == MOE_LAYERS[-1]:
                wanted = [len(tokens) - 1]
            for place, token in enumerate(wanted):
                pos = -(begin + len(wanted) - place)
                lines.append(",".join(map(str, [pos, layer, *tokens[token, row]])))
    for pos, token in enumerate(decoded):
        for row, layer in enumerate(MOE_LAYERS):
            lines.append(",".join(map(str, [pos, layer, *token[row]])))
    path.write_text("\n".join(lines) + "\n")
    return path


def tok_layers(path: Path, routing: np.ndarray) -> Path:
    rows = [
        json.dumps({"tok": number, "layers": token.tolist()})
        for number, token in enumerate(routing, start=1)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def counts_of(routing: np.ndarray) -> np.ndarray:
    """[L, E] int64."""
    return np.stack(
        [
            np.bincount(routing[:, row].ravel(), minlength=NUM_EXPERTS)
            for row in range(routing.shape[1])
        ]
    )


def imatrix(path: Path, routing: np.ndarray, **changes: Any) -> Path:
    """As llama-imatrix: float32 counts [E, 1] for each expert weight, [1, 1] for dense ones."""
    writer = GGUFWriter(path, arch="llama")
    writer.add_type(changes.get("kind", "imatrix"))
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", len(routing))
    for layer, counts in zip(MOE_LAYERS, counts_of(routing), strict=True):
        counts = np.asarray(changes.get("counts", counts), np.float32)
        for weight in ("ffn_down_exps", "ffn_gate_exps", "ffn_up_exps"):
            name = f"blk.{layer}.{weight}.weight"
            writer.add_tensor(f"{name}.in_sum2", np.ones((NUM_EXPERTS, 4), np.float32))
            writer.add_tensor(f"{name}.counts", counts.reshape(-1, 1))
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.in_sum2", np.ones((1, 4), np.float32))
        tokens = np.asarray([[changes.get("tokens", len(routing))]], np.float32)
        writer.add_tensor(f"{name}.counts", tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """An importance matrix with any tensors."""
    writer = GGUFWriter(path, arch="llama")
    writer.add_type("imatrix")
    writer.add_array("numbers", [1, 2, 3])
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def all_layers(routing: np.ndarray, width: int = 8) -> torch.Tensor:
    """[num_hidden_layers, T, 8] int32 as the recorder holds it, -1 where nothing was chosen."""
    ids = torch.full((HIDDEN_LAYERS, len(routing), width), -1, dtype=torch.int32)
    for row, layer in enumerate(MOE_LAYERS):
        ids[layer, :, : routing.shape[2]] = torch.from_numpy(routing[:, row]).int()
    return ids


def sglang_record(
    routing: np.ndarray, positions: list[int], mode: int, lengths: list[int] | None = None
) -> dict[str, Any]:
    return {
        "forward_pass_id": 0,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": [100 + position for position in positions],
        "positions": positions,
        "extend_seq_lens": lengths,
        "forward_mode": mode,
        "topk_ids_of_layer": all_layers(routing),
        "misc_objects": [],
        "global_physical_count": torch.zeros(HIDDEN_LAYERS, NUM_EXPERTS, dtype=torch.int32),
    }


def sglang(path: Path, records: list[dict[str, Any]], physical: torch.Tensor | None = None) -> Path:
    trivial = torch.arange(NUM_EXPERTS).repeat(HIDDEN_LAYERS, 1)
    mapping = trivial if physical is None else physical
    torch.save({"records": records, "last_physical_to_logical_map": mapping}, path)
    return path


def logical_count(path: Path, routing: np.ndarray, steps: int = 2, **more: Any) -> Path:
    """As mode stat, and as KTransformers: [steps, num_hidden_layers, E]."""
    counts = torch.zeros(steps, HIDDEN_LAYERS, NUM_EXPERTS, dtype=torch.int64)
    for step, tokens in enumerate(np.array_split(routing, steps)):
        counts[step, list(MOE_LAYERS)] = torch.from_numpy(counts_of(tokens))
    torch.save({"rank": 0, "logical_count": counts, **more}, path)
    return path


def npy_base64(array: np.ndarray) -> str:
    stream = io.BytesIO()
    np.save(stream, array)
    return base64.b64encode(stream.getvalue()).decode()
