import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model

MIB = 2**20

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, torch
import moeprof.runtime.loader as loader
from moeprof.checkpoint import read_checkpoint

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

checkpoint = read_checkpoint(sys.argv[1])
shape = checkpoint.shape
tiers = np.ones((shape.num_moe_layers, shape.num_experts), np.uint8)
tiers[:, ::3] = 0
before = anonymous()
seen = []
loaded = loader.load_split(
    checkpoint, tiers, device="cpu", weight_format=sys.argv[2], num_threads=1,
    progress=lambda *_: seen.append(anonymous()),
)
print(json.dumps({
    "peak": max([*seen, anonymous()]) - before,
    "tiers": sum(store.num_bytes for store in loaded.stores.values()),
    "dense": sum(p.nbytes for p in loaded.model.parameters()),
    "stored": shape.total_expert_bytes,
    "told": len(seen),
}))
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """288 MiB of experts in bfloat16: 4 layers of 48 with 3 x 512 x 512 weights each."""
    path = tmp_path_factory.mktemp("models") / "large"
    model = make_model(
        hidden_size=512,
        moe_intermediate_size=512,
        num_hidden_layers=4,
        num_experts=48,
        mlp_only_layers=[],
        initializer_range=0.02,
    )
    model.to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
@pytest.mark.parametrize("weight_format", ["q8_0", pytest.param("q4_0", marks=pytest.mark.all)])
def test_loading_holds_little_more_than_the_tiers(weight_format: str, large_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(large_model), weight_format],
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["stored"] == 288 * MIB
    assert found["told"] > 4 * 48
    # The margin is far below the difference to the experts as stored, and to a second copy.
    allowed = 1.1 * found["tiers"] + found["dense"] + 48 * MIB
    assert found["tiers"] <= found["peak"] + MIB
    assert found["peak"] <= allowed < found["stored"]
