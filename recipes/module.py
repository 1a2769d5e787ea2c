"""The LightningModule of every recipe: a network, a loss, an optimiser and a schedule, by name."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn

from ncmonitor.errors import InputError, nearest
from ncmonitor.recipes.losses import make_loss
from ncmonitor.recipes.networks.image_networks import NETWORKS, check_network
from ncmonitor.recipes.networks.image_networks import network as make_network

Batch = tuple[torch.Tensor, torch.Tensor]

SCHEDULES: Final = ("cosine", "papyan", "constant")
OPTIMIZERS: Final = ("sgd", "adam", "adamw")

#: Where "papyan" divides the learning rate by 10; for ImageNet the paper has (1/2, 3/4).
PAPYAN_MILESTONES: Final = (1 / 3, 2 / 3)

_SHAPE_KEY: Final = "image_classifier"  # in checkpoints


class ImageClassifier(pl.LightningModule):
    """Train a network to classify images.

    Args:
        network: From images to logits; its last linear layer is what collapse is measured at.
        name: Instead of ``network``: ``"resnet18"`` or another of
            ``ncmonitor.recipes.networks.image_networks.NETWORKS``, made for the data module's
            images and classes.
        classes: With ``name``: number of classes, instead of the data module's ``num_classes``.
        image_shape: With ``name``: (C, H, W), instead of the data module's ``image_shape``. With
            both the network is there at once, before the fit.
        stem: With a ``name`` of ResNet or DenseNet: ``"small"`` or ``"imagenet"``; ``None``: small
            up to 64 pixels.
        loss: ``"cross_entropy"``, ``"mse"``, ``"mse_mean"``, ``"label_smoothing"`` or ``"focal"``;
            written out in ``ncmonitor.recipes.losses``.
        smoothing: ε of label smoothing. ``None``: 0.1.
        gamma: γ of the focal loss. ``None``: 2.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``. AdamW takes weight decay out of the loss.
        lr: Learning rate at the start.
        momentum: Of SGD; β₁ of Adam and AdamW.
        weight_decay: On every parameter. Collapse needs it: the clock of the terminal phase is the
            sum of lr · weight_decay over the steps.
        schedule: Of the learning rate, by epoch. ``"cosine"``: falls to 0. ``"papyan"``: divided
            by 10 at each milestone. ``"constant"``.
        milestones: Of ``"papyan"``: shares of ``max_epochs``. ``None``: 1/3 and 2/3.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        name: str | None = None,
        classes: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        stem: str | None = None,
        loss: str = "cross_entropy",
        smoothing: float | None = None,
        gamma: float | None = None,
        optimizer: str = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine",
        milestones: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        _check_network(network, name, classes=classes, image_shape=image_shape, stem=stem)
        _check_training(optimizer, lr, momentum, weight_decay, schedule, milestones)
        # No save_hyperparameters: the run's config.yaml and its loggers have the whole config, and
        # on resuming LightningCLI would put a checkpoint's values over those of the command line.
        self.name, self.stem = name, stem
        self.classes, self.image_shape = classes, image_shape
        self.loss = make_loss(loss, smoothing=smoothing, gamma=gamma)
        self.optimizer, self.lr, self.momentum = optimizer, lr, momentum
        self.weight_decay = weight_decay
        self.schedule, self.milestones = schedule, milestones
        self.network = network
        if classes is not None and image_shape is not None:
            self._make_network(classes, image_shape)

    # -- the network -------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Make the network, now that the data module has said what it is for."""
        if self.network is not None or self._trainer is None:
            return  # without a trainer: on the way out of a checkpoint, see on_load_checkpoint
        self._make_network(*self._known_data())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the network was made for: ``load_from_checkpoint`` has no data module."""
        if self.name is not None:
            made_for = {"classes": self.classes, "image_shape": self.image_shape}
            checkpoint[_SHAPE_KEY] = made_for

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        made_for = checkpoint.get(_SHAPE_KEY)
        if self.network is None and made_for is not None:
            self._make_network(made_for["classes"], made_for["image_shape"])

    def _known_data(self) -> tuple[int, tuple[int, ...]]:
        classes: int = self._known("classes", "num_classes")
        image_shape: tuple[int, ...] = self._known("image_shape", "image_shape")
        return classes, image_shape

    def _known(self, option: str, attribute: str) -> Any:
        given = getattr(self, option)
        data = getattr(self.trainer, "datamodule", None)
        known = getattr(data, attribute, None) if given is None else given
        if known is None:
            source = "a fit without a data module" if data is None else type(data).__name__
            raise InputError(
                f"cannot make {self.name}: {source} has no {attribute}; pass "
                f"ImageClassifier({option}=...)"
            )
        return known

    def check(self, data: object) -> None:
        """Refuse images that the named network cannot take, before they are downloaded.

        Args:
            data: The data module, or anything that may have ``num_classes`` and ``image_shape``.

        Raises:
            InputError: If the network is not made yet and cannot be made for them.
        """
        classes = self.classes or getattr(data, "num_classes", None)
        shape = self.image_shape or getattr(data, "image_shape", None)
        if self.network is None and self.name is not None and classes and shape and len(shape) == 3:
            check_network(
                self.name, classes=classes, channels=shape[0], image_size=shape[1], stem=self.stem
            )

    def _make_network(self, classes: int, image_shape: tuple[int, ...]) -> None:
        assert self.name is not None
        if len(image_shape) != 3:
            raise InputError(f"image_shape must be (C, H, W), but is {tuple(image_shape)}")
        channels, height, width = image_shape
        if height != width:
            raise InputError(
                f"{self.name} takes square images, but these are {height}×{width}; crop or pad them"
            )
        self.classes, self.image_shape = classes, (channels, height, width)
        self.network = make_network(
            self.name, classes=classes, channels=channels, image_size=height, stem=self.stem
        )

    @property
    def classifier(self) -> nn.Linear:
        """The network's last layer, where it has the name that ours have."""
        assert self.network is not None
        layer = self.network.get_submodule("classifier")
        assert isinstance(
            layer, nn.Linear
        )  # the networks of ncmonitor.recipes.networks.image_networks
        return layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.network is None:
            raise InputError(
                f"{self.name} is made when a fit begins, for its data; to have it at once pass "
                "ImageClassifier(classes=..., image_shape=(C, H, W))"
            )
        logits: torch.Tensor = self.network(images)
        return logits

    # -- training ----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "val")

    def _step(self, batch: Batch, split: str) -> torch.Tensor:
        images, labels = batch
        logits = self(images)
        loss: torch.Tensor = self.loss(logits, labels)
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        epoch = partial(
            self.log, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True
        )
        epoch(f"{split}_loss", loss, prog_bar=True)
        epoch(f"{split}_accuracy", accuracy)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._make_optimizer()
        if self.schedule == "constant":
            return optimizer
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 0:
            raise InputError(
                f"the {self.schedule} schedule needs to know the last epoch; set "
                "--trainer.max_epochs"
            )
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if self.schedule == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs))
        else:
            shares = PAPYAN_MILESTONES if self.milestones is None else self.milestones
            # Rounded down, as in the authors' demonstration: 116 and 233 of 350. 1e-6: so that a
            # third of 300, or 0.3333333 of it, is 100.
            steps = [max(1, int(share * epochs + 1e-6 * epochs)) for share in shares]
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        common: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), momentum=self.momentum, **common)
        adam = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return adam(self.parameters(), betas=(self.momentum, 0.999), **common)


def _check_network(network: nn.Module | None, name: str | None, **with_name: Any) -> None:
    if network is None and name is None:
        raise InputError(
            "ImageClassifier: no network given; name one (--model.name resnet18) or give one of "
            "your own (--model.network package.module.Class)"
        )
    if network is not None and name is not None:
        raise InputError(
            f"ImageClassifier: both name={name!r} and network ({type(network).__name__}) are "
            "given; leave one out (--model.network null)"
        )
    if network is not None and not any(True for _ in network.parameters()):
        raise InputError(
            f"ImageClassifier: {type(network).__name__} has nothing to train and no linear "
            "classifier; give a network that maps images to logits"
        )
    if name is not None and name not in NETWORKS:
        raise InputError(
            f"ImageClassifier: unknown network {name!r}, expected one of: {', '.join(NETWORKS)}"
            f"{nearest(name, NETWORKS)}"
        )
    unused = [option for option, value in with_name.items() if value is not None]
    if name is None and unused:
        raise InputError(
            f"ImageClassifier: {unused[0]} describes a network given by name; give it to the "
            "network itself"
        )


def _check_training(
    optimizer: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    schedule: str,
    milestones: tuple[float, ...] | None,
) -> None:
    choices = {"optimizer": (optimizer, OPTIMIZERS), "schedule": (schedule, SCHEDULES)}
    for option, (choice, known) in choices.items():
        if choice not in known:
            raise InputError(
                f"ImageClassifier: unknown {option} {choice!r}, expected one of: "
                f"{', '.join(known)}{nearest(choice, known)}"
            )
    for number, value in {"lr": lr, "weight_decay": weight_decay}.items():
        if value < 0:
            raise InputError(f"ImageClassifier: {number} must not be negative, but is {value}")
    if not 0 <= momentum < 1:
        raise InputError(f"ImageClassifier: momentum must lie in [0, 1), but is {momentum}")
    if milestones is not None and schedule != "papyan":
        raise InputError(
            f"ImageClassifier: milestones are those of the schedule 'papyan', not of {schedule!r}"
        )
    if milestones is not None and not all(0 < share < 1 for share in milestones):
        raise InputError(
            "ImageClassifier: milestones are shares of max_epochs, each in (0, 1), but are "
            f"{list(milestones)}"
        )
