"""Fig. 4's grid: the stack against single runs, divergence, interruption, and the command itself."""

import csv
import itertools

import pytest
import torch

from pl_losses import recipes
from pl_losses.cli.main import main
from pl_losses.papers.adam import VAE, Adam
from pl_losses.papers.adam.fig4.batched_vae import BatchedVAE, Settings
from pl_losses.papers.adam.fig4.experiment import _scale, average, summary
from pl_losses.papers.adam.fig4.grid import Grid, Outcome, Plan, rows

RUNS = [
    Settings(beta1, beta2, alpha, correction)
    for beta1, beta2, alpha, correction in itertools.product(
        (0.0, 0.9), (0.99, 0.9999), (1e-3, 1e-2), (True, False)
    )
]
SIZES = {"in_features": 12, "hidden_size": 7, "latent_size": 3}


def start():
    torch.manual_seed(0)
    return VAE(**SIZES).double()


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = (torch.randn(5, 12, generator=generator, dtype=torch.float64) > 0).double()
        yield images, torch.randn(5, 3, generator=generator, dtype=torch.float64)


def bound(vae, images, noise):
    return sum(term.mean() for term in vae.compute_loss(images, noise))


def single(run, steps):
    """The weights after steps by autograd and an Adam of its own, flat."""
    vae = start()
    betas = (run.beta1, run.beta2)
    optimizer = Adam(vae.parameters(), run.alpha, betas, bias_correction=run.bias_correction)
    for images, noise in batches(steps):
        optimizer.zero_grad()
        bound(vae, images, noise).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])


def test_gradient_is_that_of_each_network_alone():
    vaes = [start() for _ in range(3)]
    generator = torch.Generator().manual_seed(2)
    stack = BatchedVAE(list(vaes[0].parameters()), RUNS[:3])
    stack.weights.add_(0.5 * torch.randn(stack.weights.shape, generator=generator, dtype=torch.float64))
    images, noise = next(batches(1))
    losses = stack.differentiate(images, noise)
    torch.testing.assert_close(stack.losses(images, noise), losses)
    for vae, row, gradient, loss in zip(vaes, stack.weights, stack.gradient, losses, strict=True):
        torch.nn.utils.vector_to_parameters(row, vae.parameters())
        wanted = bound(vae, images, noise)
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
        grads = torch.autograd.grad(wanted, list(vae.parameters()))
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in grads]), rtol=1e-12, atol=1e-12)


def test_a_stack_is_its_runs_one_after_the_other():
    stack = BatchedVAE(list(start().parameters()), RUNS)
    for index, batch in enumerate(batches(6)):
        stack.step(*batch)
        if index == 2:  # Some leave, the others go on as if nothing had happened.
            stack.keep([0, 3, 4, 13])
    for run, row in zip([RUNS[index] for index in (0, 3, 4, 13)], stack.weights, strict=True):
        assert run in stack.settings
        torch.testing.assert_close(row, single(run, 6), rtol=1e-10, atol=1e-10)


def test_first_step_without_correction_is_the_closed_forms():
    runs = [
        Settings(b1, b2, 1e-3, c) for b1, b2, c in itertools.product((0, 0.9), (0.99, 0.9999), (True, False))
    ]
    stack = BatchedVAE(list(start().parameters()), runs)
    before = stack.weights.clone()
    stack.step(*next(batches(1)))
    steps = (stack.weights - before).abs().amax(1) / 1e-3
    wanted = [1.0 if run.bias_correction else (1 - run.beta1) / (1 - run.beta2) ** 0.5 for run in runs]
    assert steps.tolist() == pytest.approx(wanted, rel=1e-4)


def plan(**options):
    return Plan(
        **{
            **{"beta1": [0.0, 0.9], "beta2": [0.9999], "log_alpha": [-3.0, 1.0], "steps": 23, "at": [4, 23]},
            **{"batch_size": 10, "hidden_size": 6, "latent_size": 2, "seed": 0, "dataset": "test"},
            **options,
        }
    )


@pytest.fixture
def images():
    return torch.randint(0, 256, (35, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_diverged_runs_are_recorded_and_the_others_do_not_notice(tmp_path, images):
    results = Grid(plan(), images, tmp_path / "a", together=8).run()
    gone = {run for run, outcome in results.items() if outcome.diverged is not None}
    assert gone
    assert all(run.alpha == 10 for run in gone)
    assert all(23 not in results[run].losses and results[run].diverged < 23 for run in gone)
    alone = Grid(plan(log_alpha=[-3.0]), images, tmp_path / "b", together=1).run()
    assert len(alone) == 4
    for run, outcome in alone.items():
        assert results[run].losses == pytest.approx(outcome.losses, rel=1e-5)
        assert set(outcome.losses) == {4, 23}
    table = list(rows(plan(), results))
    assert len(table) == 8 * 2
    assert {(row["step"], row["loss"] is None) for row in table if row["alpha"] == 1e-3} == {
        (4, False),
        (23, False),
    }


def assert_alike(one, other):
    assert set(one) == set(other)
    for run, outcome in one.items():
        assert outcome.diverged == other[run].diverged
        # Products of other batches of matrices are rounded differently.
        assert outcome.losses == pytest.approx(other[run].losses, rel=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("when", "together"), [(3, 3), (2, 8), (9, 3)])
def test_an_interrupted_grid_goes_on(tmp_path, images, when, together):
    whole = Grid(plan(), images, tmp_path / "whole", together=together).run()
    calls = []

    def progress(done, total):
        calls.append((done, total))
        if len(calls) == when:
            raise Interrupted

    with pytest.raises(Interrupted):
        Grid(plan(), images, tmp_path / "half", together=together, save_every=0.0, progress=progress).run()
    again = []
    grid = Grid(plan(), images, tmp_path / "half", together=5, progress=lambda *at: again.append(at))
    assert_alike(grid.run(), whole)
    assert again[0][0] > calls[0][0]
    assert again[-1] == (8 * 23, 8 * 23)
    finished = []
    Grid(plan(), images, tmp_path / "half", together=5, progress=lambda *at: finished.append(at)).run()
    assert not finished


def test_a_folder_of_another_plan_is_refused(tmp_path, images):
    Grid(plan(steps=4, at=[4]), images, tmp_path, together=8).run()
    with pytest.raises(
        ValueError, match=r"`seed` to be 0, as for the results in .*, but got 1: choose another `folder`"
    ):
        Grid(plan(steps=4, at=[4], seed=1), images, tmp_path, together=8)
    with pytest.raises(ValueError, match="`images` to be"):
        Grid(plan(steps=4, at=[4]), images[:20], tmp_path, together=8)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"steps": 0}, {"at": [24]}, {"at": []}, {"beta1": [1.0]}, {"beta2": []}, {"log_alpha": []}),
        *({"beta1": [0.5, 0.5]}, {"log_alpha": [400.0]}),
    ],
)
def test_bad_plans_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}`"):
        plan(**wrong)


def test_too_few_images_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match="`batch_size` to be at most 35"):
        Grid(plan(batch_size=36), images, tmp_path, together=8)


def test_the_command(folder, capfd):
    options = "--dataset digits --steps 4 --hidden_size 4 --latent_size 2 --log_alpha [-3,-2]"
    options += " --beta2 [0.999] --seeds 2 --folder out"
    assert main(["reproduce", "adam/fig4", *options.split()]) == 0
    printed = capfd.readouterr()
    assert "With bias correction: 8 of 8 runs stayed finite" in printed.out
    assert "100 %|" in printed.err
    with open("out/losses.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 8 * 2
    assert {(row["seed"], row["step"]) for row in table} == {(s, t) for s in "01" for t in "14"}
    assert table[0]["loss"] != table[16]["loss"]
    assert all(float(row["loss"]) > 0 for row in table)
    assert (folder / "out/fig4.png").stat().st_size > 10_000
    assert list(folder.glob("out/wandb/offline-run-*/*.wandb"))
    assert list(folder.glob("out/wandb/offline-run-*/files/media/images/adam/fig4*"))
    with open("out/results.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["measured"], row["low"], row["seeds"]) for row in found] == [("4.0", "4.0", "2")] * 2
    # A refused option leaves nothing that a right one would be compared with.
    refused = [*options.replace("out", "new").split(), "--batch_size", "100000"]
    assert main(["reproduce", "adam/fig4", *refused]) == 2
    assert not list(folder.glob("new/*.pt"))
    assert "`batch_size` to be at most" in capfd.readouterr().err
    assert main(["reproduce", "adam/fig4", *options.split(), "--batch_size", "50"]) == 2
    assert "`batch_size` to be 100" in capfd.readouterr().err


def test_the_sweep_is_the_same_grid_by_single_runs(capfd):
    (root,) = [root for root in recipes.roots() if (root / "sweeps/adam-fig4.yaml").is_file()]
    sweep = recipes.load(root / "sweeps/adam-fig4.yaml")
    values = {name: entry["values"] for name, entry in sweep["parameters"].items()}
    found = {
        (*betas, alpha, correction)
        for betas, alpha, correction in itertools.product(
            *(values[f"model.optimizer.{name}"] for name in ("betas", "lr", "bias_correction"))
        )
    }
    grid = plan(beta2=[0.99, 0.999, 0.9999], log_alpha=[-5.0, -4.0, -3.0, -2.0, -1.0]).settings()
    assert found == {(run.beta1, run.beta2, round(run.alpha, 5), run.bias_correction) for run in grid}
    command = [part for part in sweep["command"] if part != "${args}"]
    assert command[:2] == ["pl-losses", "fit"]
    given = [f"--{name}={options[0]}" for name, options in values.items()]
    assert main([*command[1:], *given, "--print_config"]) == 0
    config = recipes.parse(capfd.readouterr().out, "the printed config")
    assert config["trainer"]["max_steps"] == 300
    init = config["model"]["init_args"]["optimizer"]["init_args"]
    assert {"betas": [0.0, 0.99], "lr": 1e-5, "bias_correction": True}.items() <= init.items()


def test_the_summary_and_the_axis_tell_what_is_worse_than_guessing():
    runs = [
        Settings(0.9, 0.99, alpha, correction) for alpha in (1e-3, 1e-2, 1e-1) for correction in (True, False)
    ]
    losses = {1e-3: {3: 50.0, 9: 40.0}, 1e-2: {3: 1e33, 9: 1e33}, 1e-1: {3: 45.0}}
    results = {run: Outcome(losses[run.alpha], 4 if run.alpha == 0.1 else None) for run in runs}
    lines = summary([results], 60.0).splitlines()
    assert len(lines) == 2
    assert all("2 of 3 runs stayed finite, 1 ended below 60 nats" in line for line in lines)
    assert _scale(results, 60.0) == (40.0, 50.0)


def test_the_average_has_what_all_seeds_have():
    run = Settings(0.9, 0.99, 1e-3, True)
    one, other = Outcome({3: 50.0, 9: 40.0}, None), Outcome({3: 30.0}, 7)
    assert average([{run: one}, {run: other}]) == {run: Outcome({3: 40.0}, 7)}
    assert average([{run: one}, {run: one}]) == {run: one}
