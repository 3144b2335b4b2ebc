"""Activation checkpointing: the same training, with less memory."""

import copy
import pickle

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pl_losses.callbacks import ActivationCheckpointing


class Block(nn.Sequential):
    def __init__(self, width):
        layers = nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Tanh()
        super().__init__(*layers)


class Net(pl.LightningModule):
    def __init__(self, width=5, depth=3):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.seen = []

    def training_step(self, batch, batch_idx):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: kept.append(one.numel()) or one, lambda one: one
        ):
            loss = self.blocks(batch).square().mean()
        self.seen.append(sum(kept))
        return loss

    def validation_step(self, batch, batch_idx):
        self.blocks(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fitted(*callbacks, net=None):
    net = net or Net()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(1)
    loader = DataLoader(torch.randn(24, 5), batch_size=8)
    torch.manual_seed(2)
    trainer.fit(net, loader, loader)
    return net


def test_the_same_training_with_less_kept():
    plain, found = fitted(), fitted(ActivationCheckpointing("blocks.*"))
    # Weights, running statistics and counts of batches, and dropout's masks by them.
    for (name, one), other in zip(plain.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert max(found.seen) < min(plain.seen) / 4


def test_layers_get_their_own_forward_back():
    net = fitted(ActivationCheckpointing("*"))
    for module in net.modules():
        assert "forward" not in vars(module)
    assert copy.deepcopy(net) is not net
    pickle.dumps(net.blocks)


def test_only_the_outermost_layers_are_wrapped():
    wrapped = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            wrapped.extend(name for name, one in pl_module.named_modules() if "forward" in vars(one))

    fitted(ActivationCheckpointing("*1*"), Look())
    assert wrapped == ["blocks.0.1", "blocks.1", "blocks.2.1"]


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"`layers` to match a layer such as blocks, .* got 'block'"):
        fitted(ActivationCheckpointing("block"))
    with pytest.raises(TypeError, match="`layers`"):
        ActivationCheckpointing(3)


def test_a_compiled_module_is_refused():
    trainer = pl.Trainer(accelerator="cpu", callbacks=[ActivationCheckpointing("blocks")], logger=False)
    with pytest.raises(ValueError, match="no `ActivationCheckpointing` of a compiled module"):
        trainer.fit(torch.compile(Net(), backend="eager"), DataLoader(torch.randn(8, 5)))
