"""Small random networks in the shape of VGG-19, and pictures to try them on."""

import torch

from pl_losses.papers.style.vgg import CONVOLUTIONS, Weights

WIDTHS = {1: 4, 2: 6, 3: 8, 4: 8, 5: 8}


def state(seed=0, depth=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    channels, tensors = 3, {}
    for name in CONVOLUTIONS[:depth]:
        width = WIDTHS[int(name[4])]
        scale = (2 / (9 * channels)) ** 0.5
        tensors[f"{name}.weight"] = (
            torch.randn(width, channels, 3, 3, generator=generator, dtype=dtype) * scale
        )
        tensors[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator, dtype=dtype)
        channels = width
    return tensors


def small_weights(dtype=torch.float32):
    tensors = state(dtype=dtype)
    kernels = {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in CONVOLUTIONS}
    return Weights(kernels, torch.tensor([0.5, 0.4, 0.3], dtype=dtype))


def picture(height, width, seed=0, batch=None):
    """Smooth colours in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch or 1, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return images if batch else images[0]
