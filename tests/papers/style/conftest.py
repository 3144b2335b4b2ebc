"""Files: a small network's weights, a photograph and two paintings of noise."""

import pytest
import torch
from papers.style.networks import picture, state

from pl_losses.data.image_files import write_image


@pytest.fixture
def files(tmp_path):
    torch.save(state(), tmp_path / "weights.pt")
    for seed, name in enumerate(("photo", "other", "painting", "second")):
        write_image(picture(40, 32, seed), tmp_path / f"{name}.png")
    return {path.stem: str(path) for path in tmp_path.iterdir()}
