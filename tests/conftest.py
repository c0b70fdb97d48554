from pathlib import Path

import pytest
import torch
from tiny import save_model

# The tests run in parallel processes; threads of each would only wait for each other's cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")
