"""The error over the noise level and the number of layers: what each training is given."""

from pl_losses.cli.main import main
from pl_losses.core.protocol import Score
from pl_losses.papers.sdae import noise_levels


def test_each_stack_has_its_layers_and_its_level(folder, monkeypatch):
    seen = []

    def trained(model, data, epochs, held_out, **options):
        seen.append((len(model.hidden), model.level, epochs, held_out, data.seed))
        return Score.of_error(0.1, 300)

    monkeypatch.setattr(noise_levels, "trained", trained)
    small = "--source digits --levels [0,0.5] --layers [1,3] --seeds 1 --hidden_size 4 --wandb disabled"
    small += " --pretrain_epochs 2 --finetune_epochs 5"
    assert main(["reproduce", "sdae/levels", *small.split()]) == 0
    assert seen == [(1, 0, 7, False, 0), (1, 0.5, 7, False, 0), (3, 0, 11, False, 0), (3, 0.5, 11, False, 0)]
    assert (folder / "runs/sdae/levels/levels.png").is_file()
