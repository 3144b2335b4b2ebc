"""Fig. 6: what each training is given."""

from pl_losses.cli.main import main
from pl_losses.core.protocol import Score
from pl_losses.papers.lenet import training_size


def test_all_sizes_have_the_same_steps(folder, monkeypatch, capsys):
    seen = []

    def trained(model, data, epochs, held_out, **options):
        data.setup("fit")
        seen.append((len(data.tensors["train"][0]), data._affine is not None, data.seed, held_out, options))
        return Score.of_error(0.1 / len(seen), 300)

    monkeypatch.setattr(training_size, "trained", trained)
    small = "--dataset digits --sizes [100,50] --steps 7 --seeds 2 --wandb disabled"
    assert main(["reproduce", "lenet/training-size", *small.split()]) == 0
    assert seen == [
        (size, distorted, seed, False, {"max_steps": 7})
        for seed in (0, 1)
        for distorted in (False, True)
        for size in (50, 100)
    ]
    printed = capsys.readouterr().out
    assert "50 images, distorted, test error, %: 2.38" in printed  # The mean of 10 / 3 and 10 / 7.
    assert (folder / "runs/lenet/training-size/sizes.png").is_file()
