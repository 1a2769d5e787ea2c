"""The network and the LightningModule of the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import toys
from cases import seeded
from ncmonitor import InputError
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.recipes.losses import make_loss
from ncmonitor.recipes.module import ImageClassifier
from ncmonitor.recipes.networks.image_networks import MLP


def test_mlp_has_the_stated_layers() -> None:
    model = MLP(inputs=64, hidden=(32, 16), classes=10)
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(64, 32), (32, 16), (16, 10)]
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


def test_features_are_the_input_of_the_classifier() -> None:
    model = ImageClassifier(MLP(hidden=(32, 16))).eval()
    seen: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(torch.randn(5, 1, 8, 8))
    assert seen[0].shape == (5, 16)
    assert (seen[0] >= 0).all()  # after the ReLU
    torch.testing.assert_close(logits, model.classifier(seen[0]))


def test_mlp_explains_impossible_sizes_and_images() -> None:
    with pytest.raises(InputError, match=r"hidden=\[16, 0\]"):
        MLP(hidden=(16, 0))
    with pytest.raises(InputError, match=r"expected images of 64 pixels, got \(3, 8, 8\), .* 192"):
        MLP()(torch.zeros(2, 3, 8, 8))


class Images(pl.LightningDataModule):
    """Twenty random images of five classes, in batches of unequal size."""

    num_classes = 5

    def __init__(self, shape: tuple[int, ...] = (3, 8, 8)) -> None:
        super().__init__()
        self.image_shape = shape
        self.images = torch.randn(20, *shape, generator=seeded(0))
        self.labels = torch.arange(20) % 5

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=8)

    val_dataloader = train_dataloader


class Rates(pl.Callback):
    """Keeps the learning rate of each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def trained(epochs: int, **options: Any) -> tuple[ImageClassifier, list[float]]:
    """Train on random images; return the module and its learning rate in each epoch."""
    rates = Rates()
    module = ImageClassifier(MLP(inputs=192, hidden=(8,), classes=5), **options)
    toys.trainer(rates, max_epochs=epochs).fit(module, datamodule=Images())
    return module, rates.rates


pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

# -- schedules and optimisers ----------------------------------------------------------------------


def test_the_learning_rate_falls_along_a_cosine() -> None:
    _, rates = trained(4, lr=0.2)
    assert rates == pytest.approx([0.2, 0.1 + 0.1 * 0.5**0.5, 0.1, 0.1 - 0.1 * 0.5**0.5])


def test_papyan_divides_by_ten_at_a_third_and_two_thirds() -> None:
    _, rates = trained(6, lr=1.0, schedule="papyan")
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_milestones_are_shares_of_the_epochs() -> None:
    _, rates = trained(4, lr=1.0, schedule="papyan", milestones=(0.5, 0.75))
    assert rates == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("epochs", "milestones", "expected"),
    [
        (350, None, [116, 233]),  # as in the authors' demonstration
        (300, None, [100, 200]),
        (300, (1 / 2, 3 / 4), [150, 225]),  # ImageNet's
        (300, (0.3333333, 0.6666666), [100, 200]),
        (1, None, [1, 1]),  # a dry run keeps its learning rate
    ],
)
def test_milestones_fall_on_the_epochs_of_the_paper(
    epochs: int, milestones: tuple[float, ...] | None, expected: list[int]
) -> None:
    module = ImageClassifier(MLP(), schedule="papyan", milestones=milestones)
    module.trainer = toys.trainer(max_epochs=epochs)
    made: Any = module.configure_optimizers()
    assert sorted(made["lr_scheduler"].milestones.elements()) == expected


def test_a_constant_rate_needs_no_end() -> None:
    assert trained(3, lr=0.2, schedule="constant")[1] == [0.2, 0.2, 0.2]
    module = ImageClassifier(MLP(), schedule="constant")
    module.trainer = toys.trainer(max_epochs=-1)
    assert isinstance(module.configure_optimizers(), torch.optim.SGD)


@pytest.mark.parametrize("schedule", ["cosine", "papyan"])
def test_a_schedule_without_an_end_is_refused(schedule: str) -> None:
    message = rf"the {schedule} schedule needs to know .* set --trainer\.max_epochs"
    with pytest.raises(InputError, match=message):
        trained(-1, schedule=schedule)


def test_momentum_and_weight_decay_reach_the_optimiser() -> None:
    module, _ = trained(1, lr=0.1, momentum=0.5, weight_decay=0.25)
    (group,) = module.trainer.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)
    assert len(group["params"]) == len(list(module.parameters()))


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_adam_takes_momentum_as_its_first_beta(
    name: str, kind: type[torch.optim.Optimizer]
) -> None:
    module, _ = trained(1, optimizer=name, lr=0.01, momentum=0.8, weight_decay=0.25)
    (optimizer,) = module.trainer.optimizers
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.0, 0.25)  # after its one epoch
    assert group["betas"] == (0.8, 0.999)


# -- loss and accuracy -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "label_smoothing", "focal"])
def test_loss_and_accuracy_are_logged_for_both_splits(loss: str) -> None:
    module, _ = trained(1, loss=loss, lr=0.0)  # the weights stay what they are
    data, logged = Images(), module.trainer.logged_metrics
    value = make_loss(loss)
    logits = module.eval()(data.images)
    expected = {
        "val_loss": value(logits, data.labels),
        "val_accuracy": (logits.argmax(1) == data.labels).float().mean(),
        "train_loss": torch.tensor(0.0),
        "train_accuracy": torch.tensor(0.0),
    }
    module.train()
    for images, labels in data.train_dataloader():  # of 8, 8 and 4 images
        logits = module(images)
        expected["train_loss"] += value(logits, labels) * len(labels) / 20
        expected["train_accuracy"] += (logits.argmax(1) == labels).sum() / 20
    assert set(logged) == set(expected)
    for name in expected:
        torch.testing.assert_close(logged[name], expected[name].detach())


# -- networks by name ------------------------------------------------------------------------------


def test_a_name_becomes_a_network_for_the_data() -> None:
    module = ImageClassifier(name="convnet", lr=0.01)
    toys.trainer(max_epochs=1).fit(module, datamodule=Images((2, 12, 12)))
    assert (module.classes, module.image_shape) == (5, (2, 12, 12))
    assert module(torch.zeros(3, 2, 12, 12)).shape == (3, 5)


def test_collapse_is_measured_at_a_network_made_for_the_data(tmp_path: Path) -> None:
    monitor = NeuralCollapse(on_error="raise", verbose=False, run_dir=tmp_path)
    toys.trainer(monitor, max_epochs=1).fit(ImageClassifier(name="resnet18"), datamodule=Images())
    assert sorted(set(monitor.history["epoch"])) == [0, 1]
    assert monitor.history["nc1"].notna().all()


def test_with_classes_and_shape_the_network_is_there_at_once() -> None:
    module = ImageClassifier(name="resnet18", classes=4, image_shape=(1, 32, 32), stem="imagenet")
    assert module.classifier.out_features == 4
    assert module.network is not None
    assert module.network.get_submodule("body.conv1").kernel_size == (7, 7)
    module.eval()
    assert module(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


def test_what_is_said_goes_before_what_the_data_module_says() -> None:
    module = ImageClassifier(name="mlp", classes=9)
    toys.trainer(max_epochs=1).fit(module, datamodule=Images())
    assert module.classifier.out_features == 9
    assert module.image_shape == (3, 8, 8)


def test_checkpoints_hold_what_the_network_was_made_for(tmp_path: Path) -> None:
    module = ImageClassifier(name="convnet", lr=0.01)
    trainer = toys.trainer(max_epochs=1)
    trainer.fit(module, datamodule=Images())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    loaded = ImageClassifier.load_from_checkpoint(path, name="convnet", weights_only=True).eval()
    images = Images().images
    assert torch.equal(loaded(images), module.eval()(images))


def test_a_named_network_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    def fitted(epochs: int, ckpt_path: Path | None = None) -> tuple[pl.Trainer, ImageClassifier]:
        torch.manual_seed(0 if ckpt_path is None else 1)
        module = ImageClassifier(name="convnet", lr=0.01, schedule="constant")
        trainer = toys.trainer(max_epochs=epochs)
        trainer.fit(module, datamodule=Images(), ckpt_path=ckpt_path, weights_only=True)
        return trainer, module

    fitted(1)[0].save_checkpoint(tmp_path / "a.ckpt")
    resumed, whole = fitted(2, tmp_path / "a.ckpt")[1], fitted(2)[1]
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0, msg=key)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no network given; name one \(--model.name resnet18\)"),
        ({"name": "mlp", "network": MLP()}, r"both name='mlp' and network \(MLP\) are given"),
        ({"name": "resnet19"}, "unknown network 'resnet19', .*did you mean 'resnet18'"),
        ({"network": nn.Flatten()}, "Flatten has nothing to train and no linear classifier"),
        ({"network": MLP(), "classes": 3}, "classes describes a network given by name"),
        ({"network": MLP(), "stem": "small"}, "stem describes a network given by name"),
        ({"loss": "mce"}, "unknown loss 'mce', .*did you mean 'mse'"),
        ({"loss": "mse", "smoothing": 0.1}, "smoothing is a parameter of the loss 'label_smooth"),
        ({"optimizer": "adma"}, "unknown optimizer 'adma', expected one of: sgd, adam, adamw; did"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin', .*did you mean 'cosine'"),
        ({"milestones": (0.5,)}, "milestones are those of the schedule 'papyan', not of 'cosine'"),
        (
            {"schedule": "papyan", "milestones": (116, 233)},
            r"shares of max_epochs, .* \[116, 233\]",
        ),
        ({"lr": -1.0}, "lr must not be negative, but is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, but is -1.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), but is 1.0"),
    ],
)
def test_mistakes_are_explained_at_once(options: dict[str, Any], message: str) -> None:
    if options and not {"name", "network"} & set(options):
        options = {"network": MLP(), **options}
    with pytest.raises(InputError, match=message) as caught:
        ImageClassifier(**options)
    assert len(str(caught.value)) < 280  # one line of the command's


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 9), "vgg11 takes square images, but these are 8×9; crop or pad them"),
        ((8, 8), r"image_shape must be \(C, H, W\), but is \(8, 8\)"),
        ((3, 28, 28), r"at least 32 pixels a side, .* pad them \(--data.image_size 32\)"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused_before_training(
    shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        toys.trainer().fit(ImageClassifier(name="vgg11"), datamodule=Images(shape))


def test_without_a_data_module_that_knows_the_missing_option_is_named() -> None:
    module = ImageClassifier(name="mlp", classes=5)
    with pytest.raises(InputError, match=r"a fit without a data module has no image_shape; pass "):
        toys.trainer().fit(module, *[Images().train_dataloader()] * 2)
    with pytest.raises(
        InputError, match=r"Other has no num_classes; pass ImageClassifier\(classes"
    ):
        toys.trainer().fit(ImageClassifier(name="mlp"), datamodule=Other())
    with pytest.raises(InputError, match="mlp is made when a fit begins, for its data"):
        module(torch.zeros(1, 3, 8, 8))


class Other(Images):
    """Does not say how many classes it has."""

    num_classes = None  # type: ignore[assignment]
