"""Settings in which the callback must leave no trace and tell the right numbers; a table of them.

Every setting is one fit without and one with the monitor, of a tiny network on a few points.
``python tests/matrix.py`` prints what :mod:`callbacks.test_matrix` asserts.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchvision.models import mobilenet_v2, resnet18, shufflenet_v2_x0_5
from torchvision.models.vision_transformer import VisionTransformer

from cases import seeded
from ncmonitor import CollapseReport, measure_collapse
from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.callbacks.measurement import Measurement
from ncmonitor.callbacks.rows import layer_split, names_of
from ncmonitor.history import NULL_SPLIT, ONLINE_SPLIT
from ncmonitor.metrics import SHAPE
from toys import CLASSES, blobs, val_blobs

BATCH, WIDTH, SHUFFLE = 16, 8, 3

# -- data ------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Raw tensors, in the order of the data set; inputs may be a dictionary of tensors."""

    train: tuple[Any, Tensor]
    val: tuple[Any, Tensor]


def points() -> Data:
    return Data(blobs(), val_blobs())


def _pictures(samples: int, seed: int, side: int) -> tuple[Tensor, Tensor]:
    inputs, labels = blobs(samples, seed=seed)
    noise = torch.randn(samples, 3, side, side, generator=seeded(seed + 10))
    return noise + inputs[:, :3, None, None], labels


def pictures(side: int = 6) -> Data:
    return Data(_pictures(45, 0, side), _pictures(30, 4, side))


def _words(samples: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = seeded(seed)
    labels = torch.arange(samples) % CLASSES
    words = torch.randint(0, 5, (samples, 7), generator=generator) + 2 * labels[:, None]
    lengths = torch.randint(3, 8, (samples, 1), generator=generator)
    return {"input_ids": words, "attention_mask": (torch.arange(7) < lengths).long()}, labels


def sentences() -> Data:
    return Data(_words(45, 0), _words(30, 4))


def _tagged(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs, labels = blobs(7 * samples, seed=seed)
    labels[::5] = -100  # tokens without a class
    return inputs.view(samples, 7, 6), labels.view(samples, 7)


def tagged() -> Data:
    return Data(_tagged(45, 0), _tagged(30, 4))


def segmented() -> Data:
    """A class for every position."""
    parts = []
    for samples, seed in ((45, 0), (30, 4)):
        inputs, labels = blobs(36 * samples, seed=seed, noise=2.5)
        maps = inputs[:, :3].view(samples, 6, 6, 3).movedim(-1, 1).contiguous()
        parts.append((maps, labels.view(samples, 6, 6)))
    return Data(*parts)


def at(inputs: Any, where: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: value[where] for key, value in inputs.items()}
    return inputs[where]


class Items(Dataset[Any]):
    """Samples in any shape, perhaps with noise from every global generator."""

    def __init__(self, data: tuple[Any, Tensor], form: Any = None, *, noise: float = 0.0) -> None:
        (self.inputs, self.labels), self.form, self.noise = data, form, noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        inputs, label = at(self.inputs, index), self.labels[index]
        if self.noise:
            drawn = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
            inputs = inputs + self.noise * drawn
        return (inputs, label) if self.form is None else self.form(inputs, label)


class Stream(IterableDataset[Any]):
    def __init__(self, data: tuple[Any, Tensor]) -> None:
        self.items = Items(data)

    def __iter__(self) -> Iterator[Any]:
        return (self.items[i] for i in range(len(self.items)))


class Pairs:
    """A batch sampler of the user's own: shuffled, in batches of ten."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([part.tolist() for part in torch.randperm(45).split(10)])

    def __len__(self) -> int:
        return 5


@dataclass
class Sample:
    image: Tensor
    target: Tensor


class Named(NamedTuple):
    image: Tensor
    label: Tensor


def stacked(samples: list[tuple[Tensor, Tensor]]) -> Sample:
    return Sample(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))


def loaders(data: Data, form: Any = None, **changes: Any) -> dict[str, Any]:
    """Arguments of ``fit``: a shuffling training loader and a validation loader."""
    settings = {"batch_size": BATCH, "shuffle": True} | changes
    workers = {k: v for k, v in changes.items() if k in ("num_workers", "collate_fn")}
    val = DataLoader(Items(data.val, form), batch_size=BATCH, **workers)
    return {
        "train_dataloaders": DataLoader(Items(data.train, form), **settings),
        "val_dataloaders": val,
    }


def with_train(make: Callable[[Data], Any]) -> Callable[[Data], dict[str, Any]]:
    return lambda data: loaders(data) | {"train_dataloaders": make(data)}


class Augmenting(pl.LightningDataModule):
    """Scales every batch on the device, and adds noise in training alone."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.loaders = loaders(data)

    def train_dataloader(self) -> Any:
        return self.loaders["train_dataloaders"]

    def val_dataloader(self) -> Any:
        return self.loaders["val_dataloaders"]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        inputs, labels = batch
        assert self.trainer is not None
        noise = 0.1 * torch.randn_like(inputs) if self.trainer.training else 0.0
        return inputs / 2 + noise, labels


# -- models ----------------------------------------------------------------------------------------


def mlp(norm: bool = True) -> nn.Sequential:
    between: list[nn.Module] = [nn.BatchNorm1d(WIDTH)] if norm else []
    return nn.Sequential(nn.Linear(6, WIDTH), *between, nn.ReLU(), nn.Dropout(0.3))


class Net(pl.LightningModule):
    """A body and a head; ``pick`` finds inputs and labels in a batch."""

    body: Any
    head: Any

    def __init__(
        self,
        body: Callable[[], nn.Module] = mlp,
        head: Callable[[], nn.Module] = lambda: nn.Linear(WIDTH, CLASSES),
        pick: Callable[[Any], tuple[Any, Tensor]] = lambda batch: (batch[0], batch[1]),
    ) -> None:
        super().__init__()
        self.body, self.head, self.pick = body(), head(), pick

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))

    def loss(self, batch: Any) -> Tensor:
        inputs, labels = self.pick(batch)
        logits = self(inputs)
        return F.cross_entropy(logits.reshape(-1, CLASSES), labels.flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


class Scaled(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.body(x) * scale)

    def loss(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self(inputs, torch.tensor(2.0)), labels)


class Whole(Net):
    """A network of somebody else's, head included."""

    def __init__(self, net: Callable[[], nn.Module]) -> None:
        super().__init__(nn.Identity, nn.Identity)
        self.net = net()

    def forward(self, x: Any) -> Any:
        return self.net(x)


class TimmStyle(nn.Module):
    """As timm's networks: ``get_classifier``, and a second head that is returned as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop = mlp(), nn.Dropout(0.1)
        self.fc, self.head_dist = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.drop(x)
        return self.fc(x), self.head_dist(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_head(self.stem(x))


class TwoHeads(Whole):
    def loss(self, batch: Any) -> Tensor:
        first, second = self(batch[0])
        return F.cross_entropy(first, batch[1]) + F.cross_entropy(second, batch[1])


class Pair(nn.Module):
    """Two heads that nothing tells apart but their names."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.main, self.other = mlp(), nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.main(x), self.other(x)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class TextHead(nn.Module):
    """As the classification heads of Hugging Face's encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)
        self.out_proj = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


class TextNet(Net):
    """As Hugging Face's classifiers: called by name, returns loss and logits."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Embedding(20, WIDTH), TextHead)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask[..., None].to(self.body.weight.dtype)
        return (self.body(input_ids) * kept).sum(1) / kept.sum(1)

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Output:
        logits = self.head(self.pooled(input_ids, attention_mask))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return Output(loss, logits)

    def loss(self, batch: Any) -> Tensor:
        loss = self(**batch).loss
        assert loss is not None
        return loss


def text_features(module: Any, inputs: dict[str, Tensor]) -> Tensor:
    head = module.head
    return torch.tanh(head.dense(module.pooled(**inputs)))


class ImageNet(Net):
    """As Hugging Face's image classifiers."""

    def __init__(self) -> None:
        super().__init__(lambda: conv_body(True))

    def pooled(self, pixel_values: Tensor) -> Tensor:
        return self.body(pixel_values).flatten(1)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.head(self.pooled(pixel_values))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return Output(loss, logits)

    loss = TextNet.loss


def conv_body(pooled: bool) -> nn.Sequential:
    pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), *pool)


class Dense(Net):
    """A class for every position, by a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Conv2d(3, WIDTH, 3, padding=1), lambda: nn.Conv2d(WIDTH, 3, 1))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def flat_conv_body() -> nn.Module:
    return nn.Sequential(*conv_body(True), nn.Flatten())


def conv_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, CLASSES, 1), nn.Flatten())


def pool_behind() -> nn.Module:
    head = nn.Conv2d(WIDTH, CLASSES, 1)
    return nn.Sequential(head, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Compiled(Net):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.body = torch.compile(self.body, backend=backend)


class CompiledInPlace(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body.compile(backend="aot_eager")


class CompiledWhole(Net):
    def __init__(self) -> None:
        super().__init__()
        self.compile(backend="aot_eager")


class CompiledHead(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.compile(self.head, backend="aot_eager")


class FrozenNorm(Net):
    """Its BatchNorm stays in eval mode, without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body[1].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.body[1].eval()


class FrozenByTrain(Net):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.body[1].eval()
        return self


class Manual(Net):
    """Steps two optimizers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizers: Any = self.optimizers()
        loss = self.loss(batch)
        for each in optimizers:
            each.zero_grad()
        self.manual_backward(loss)
        for each in optimizers:
            each.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        body = torch.optim.Adam(self.body.parameters(), 1e-2)
        return body, torch.optim.SGD(self.head.parameters(), 0.05, momentum=0.9)


class OneManual(Manual):
    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return [super().optimizers(use_pl_optimizer)]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)


class MadeInSetup(Net):
    def __init__(self) -> None:
        super().__init__(nn.Identity, nn.Identity)

    def setup(self, stage: str) -> None:
        self.body, self.head = mlp(), nn.Linear(WIDTH, CLASSES)


class Configured(MadeInSetup):
    setup = pl.LightningModule.setup

    def configure_model(self) -> None:
        if isinstance(self.head, nn.Identity):
            self.body, self.head = mlp(), nn.Linear(WIDTH, CLASSES)


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class Reentrant(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body[1:], self.body[0](x), use_reentrant=True))


class HeadToo(Net):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class Tied(Net):
    """Its classifier's weight is the embedding that its inputs are made of."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Linear(6, WIDTH))
        self.names = nn.Embedding(CLASSES, WIDTH)
        self.head.weight = self.names.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedded(x))

    def embedded(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x) + self.names(x[:, 0].gt(0).long()))


# -- settings --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByHand:
    """How to collect what is measured without this package.

    Attributes:
        features: From module and raw inputs to the classifier's input.
        head: The classifier of a module.
        logits: From module and features to logits, where the head does not give them.
        samples: How many training samples are measured; ``None`` for all.
        val_samples: Likewise of the validation set.
        batch: Training samples in a batch.
        weights: ``"trained"``: those of the module after the fit; ``"raw"``: those of the end of
            the last training epoch.
        dtype: Of weights and inputs; ``None``: those of the module.
        autocast: Whether the network runs under bfloat16 autocast.
        layers: Inner layers: from module and raw inputs to their features.
        tolerance: Largest relative difference to what the monitor says.
    """

    features: Callable[[Any, Any], Tensor] = lambda module, x: module.body(x)
    head: Callable[[Any], Any] = lambda module: module.head
    logits: Callable[[Any, Tensor], Tensor] | None = None
    samples: int | None = None
    val_samples: int | None = None
    batch: int = BATCH
    weights: str = "trained"
    dtype: torch.dtype | None = None
    autocast: bool = False
    layers: Mapping[str, Callable[[Any, Any], Tensor]] = field(default_factory=dict)
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Setting:
    """One way to train, and how it is measured by hand.

    Attributes:
        name: Shown in the table.
        group: Likewise.
        module: Makes the network.
        data: Makes the raw tensors.
        loaders: From them to the arguments of ``fit``.
        trainer: Arguments of the trainer; ``callbacks`` and ``logger`` as functions that make them.
        monitor: Arguments of the callback, or a function of the module that gives them.
        by_hand: What the numbers are compared with.
        note: What is special about what is measured.
        warns: Patterns of warnings that this setting brings, Lightning's or ours.
        val: Names of the validation splits that are measured.
        slow: Whether it takes more than a few seconds.
    """

    name: str
    group: str
    module: Callable[[], Any] = Net
    data: Callable[[], Data] = points
    loaders: Callable[[Data], dict[str, Any]] = loaders
    trainer: Mapping[str, Any] = field(default_factory=dict)
    monitor: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] = field(default_factory=dict)
    by_hand: ByHand = ByHand()
    note: str = ""
    warns: Sequence[str] = ()
    val: Sequence[str] = ("val",)
    slow: bool = False


def without(name: str) -> Callable[[Any, Any], Tensor]:
    """Run a network with the layer of that name replaced by the identity."""

    def features(module: Any, x: Any) -> Tensor:
        parent, _, child = name.rpartition(".")
        owner = module.net.get_submodule(parent)
        head = getattr(owner, child)
        setattr(owner, child, nn.Identity())
        try:
            output = module.net(x)
        finally:
            setattr(owner, child, head)
        return output[0] if isinstance(output, tuple) else output

    return features


def whole(name: str, network: Callable[[], Any], head: str, side: int = 0, **more: Any) -> Setting:
    by_hand = ByHand(without(head), lambda module: module.net.get_submodule(head))
    data: Any = functools.partial(pictures, side) if side else points
    kind = Whole if side or name == "nn.Sequential" else TwoHeads
    module = functools.partial(kind, network)
    return Setting(name, "heads", module, data, by_hand=by_hand, **more)


def net(**parts: Any) -> Callable[[], Net]:
    return functools.partial(Net, **parts)


def linear(head: Any, features: Tensor) -> Tensor:
    return F.linear(features, head.weight.flatten(1), head.bias)


def first(count: int) -> Callable[[Any, Any], Tensor]:
    """Return the output of the first layers of the body, averaged over the positions of a map."""

    def features(module: Any, x: Tensor) -> Tensor:
        output = module.body[:count](x)
        return output.mean((2, 3)) if output.ndim == 4 else output

    return features


def by_key(*keys: str) -> Callable[[Any], tuple[Any, Any]]:
    return lambda batch: (batch[keys[0]], batch[keys[1]])


def by_name(batch: Any) -> tuple[Any, Any]:
    return batch.image, batch.target


def from_b(batch: Any) -> tuple[Any, Any]:
    batch = batch["b"] if isinstance(batch, dict) else batch
    return batch[0], batch[1]


def last_two(batch: Any) -> tuple[Any, Any]:
    return batch[2], batch[1]


def scaled(module: Any, x: Tensor) -> Tensor:
    return module(x, torch.tensor(2.0))


def headed(made: Callable[[nn.Module], nn.Module]) -> Callable[[], Net]:
    return net(head=lambda: made(nn.Linear(WIDTH, CLASSES)))


def pruned(head: nn.Module) -> nn.Module:
    prune.random_unstructured(head, "weight", 0.3)
    return head


def ema() -> list[Any]:
    return [EMAWeightAveraging(decay=0.8)]


def swa() -> list[Any]:
    return [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]


def two_loggers() -> list[Any]:
    return [CSVLogger("logs", name="a"), CSVLogger("logs", name="b")]


def stream(data: Data) -> Any:
    return DataLoader(Stream(data.train), BATCH)


def combined(data: Data) -> Any:
    both = {"a": Items(data.val), "b": Items(data.train)}
    return CombinedLoader({k: DataLoader(v, BATCH, shuffle=True) for k, v in both.items()})


def weighted(data: Data) -> Any:
    sampler = WeightedRandomSampler([1.0, 2.0, 3.0] * 15, 45)
    return DataLoader(Items(data.train), BATCH, sampler=sampler)


def noisy(data: Data) -> Any:
    return DataLoader(Items(data.train, noise=0.1), BATCH, shuffle=True)


def clean() -> Any:
    return DataLoader(Items(points().train), BATCH)


def augmented(data: Data) -> dict[str, Any]:
    return {"datamodule": Augmenting(data)}


def train_alone(data: Data) -> dict[str, Any]:
    return {"train_dataloaders": loaders(data)["train_dataloaders"]}


def two_val(data: Data) -> dict[str, Any]:
    made = loaders(data)
    return made | {"val_dataloaders": [made["val_dataloaders"]] * 2}


def form(made: Callable[[Any, Any], Any]) -> Callable[[Data], dict[str, Any]]:
    return functools.partial(loaders, form=made)


def train(**changes: Any) -> Callable[[Data], dict[str, Any]]:
    return lambda data: loaders(data, **{k: v() for k, v in changes.items()})


PLAIN, RAW = net(body=lambda: mlp(norm=False)), ByHand(weights="raw")
AOT = functools.partial(Compiled, "aot_eager")
NO_VAL: dict[str, Any] = {
    "loaders": train_alone,
    "val": (),
    "warns": ("no validation data", "have no `val_dataloader`", "deprecated"),
}
EMA: dict[str, Any] = {"callbacks": ema}
SWA: dict[str, Any] = {"callbacks": swa, "max_epochs": 3}
HALVED = ByHand(lambda module, x: module.body(x / 2))
# fmt: off


def batches() -> list[Setting]:
    add: Any = functools.partial(Setting, group="batches")
    text = ByHand(text_features, lambda module: module.head.out_proj)
    return [
        add("tuple"),
        add("dict", module=net(pick=by_key("image", "label")),
            loaders=form(lambda x, y: {"image": x, "label": y, "index": 7})),
        add("dataclass", module=net(pick=by_name), loaders=train(collate_fn=lambda: stacked)),
        add("NamedTuple", loaders=form(Named)),
        add("text, Hugging Face style", module=TextNet, data=sentences, by_hand=text,
            loaders=form(lambda x, y: x | {"labels": y})),
        add("batch_to_xy=", module=net(pick=last_two), monitor={"batch_to_xy": last_two},
            loaders=form(lambda x, y: (7, y, x))),
        add("forward=", module=Scaled, monitor={"forward": scaled},
            by_hand=ByHand(lambda module, x: module.body(x) * 2.0)),
    ]


def heads() -> list[Setting]:
    add: Any = functools.partial(Setting, group="heads")
    mobile = functools.partial(mobilenet_v2, num_classes=3, width_mult=0.1)
    vit = functools.partial(VisionTransformer, 8, 4, 1, 2, WIDTH, WIDTH, num_classes=3)
    before = net(body=lambda: conv_body(True), head=conv_head)
    behind = net(body=lambda: conv_body(False), head=pool_behind)
    pooled = ByHand(lambda m, x: m.body(x).flatten(2).mean(2), lambda m: m.head[0], linear)
    dense = ByHand(lambda m, x: m.body(x).movedim(1, -1), logits=linear)
    return [
        whole("nn.Sequential", lambda: nn.Sequential(mlp(), nn.Linear(WIDTH, CLASSES)), "1"),
        whole("torchvision resnet18", lambda: resnet18(num_classes=3), "fc", 8),
        whole("torchvision mobilenet_v2", mobile, "classifier.1", 16),
        whole("torchvision shufflenet_v2", lambda: shufflenet_v2_x0_5(num_classes=3), "fc", 16),
        whole("torchvision ViT", vit, "heads.head", 8),
        whole("timm style, get_classifier()", TimmStyle, "fc"),
        add("Hugging Face style", module=ImageNet, data=pictures, by_hand=ByHand(ImageNet.pooled),
            loaders=form(lambda x, y: {"pixel_values": x, "labels": y})),
        whole("by name", Pair, "main", monitor={"classifier": "net.main"}),
        whole("by pattern", Pair, "main", monitor={"classifier": "*.ma?n"}),
        whole("by module", Pair, "main", monitor=lambda m: {"classifier": m.net.main}),
        add("1x1 convolution, pooled before", module=before, data=pictures, by_hand=pooled),
        add("1x1 convolution, pooled behind", module=behind, data=pictures, by_hand=pooled),
        add("1x1 convolution, dense", module=Dense, data=segmented, by_hand=dense),
        add("tied to an embedding", module=Tied, by_hand=ByHand(Tied.embedded)),
        add("parametrised, weight_norm", module=headed(parametrizations.weight_norm)),
        add("parametrised, spectral_norm", module=headed(parametrizations.spectral_norm)),
        add("hook, spectral_norm", module=headed(nn.utils.spectral_norm), **NO_VAL),
        add("hook, weight_norm", module=headed(nn.utils.weight_norm), **NO_VAL),
        add("hook, pruned", module=headed(pruned), **NO_VAL),
        add("tokens (B, T, d), some ignored", module=PLAIN, data=tagged),
        add("tokens, an inner layer", module=PLAIN, data=tagged, monitor={"layers": "body.1"},
            by_hand=ByHand(layers={"body.1": first(2)})),
    ]


def models() -> list[Setting]:
    add: Any = functools.partial(Setting, group="models")
    inner = {"body.0": first(1), "body.2": first(3)}
    conv = net(body=flat_conv_body)
    return [
        add("torch.compile, whole", module=lambda: torch.compile(Net(), backend="aot_eager")),
        add("torch.compile, body", module=AOT),
        add("torch.compile, body, inductor", module=functools.partial(Compiled, "inductor"),
            warns=["No CUDA runtime"], slow=True),
        add("torch.compile, head", module=CompiledHead, warns=["not a leaf Tensor"]),
        add("compile()", module=CompiledWhole),
        add("body.compile()", module=CompiledInPlace),
        add("frozen BatchNorm", module=FrozenNorm),
        add("frozen by train()", module=FrozenByTrain),
        add("layers made in setup()", module=MadeInSetup),
        add("configure_model()", module=Configured),
        add("lazy layers", module=net(head=lambda: nn.LazyLinear(CLASSES)),
            warns=["Lazy", "uninitialized"]),
        add("gradient checkpointing", module=Checkpointed),
        add("gradient checkpointing, reentrant", module=Reentrant, warns=["None of the inputs"]),
        add("gradient checkpointing, head too", module=HeadToo),
        add("layers=(...)", monitor={"layers": tuple(inner)}, by_hand=ByHand(layers=inner)),
        add("layers=(...), convolutions", module=conv, data=pictures,
            monitor={"layers": tuple(inner)}, by_hand=ByHand(layers=inner)),
        add('layers="all"', monitor={"layers": "all"}, by_hand=ByHand(layers={"body.0": first(1)})),
        add("null_seed=", monitor={"null_seed": SHUFFLE}),
    ]


def online() -> list[Setting]:
    """The features of the training steps themselves, with exact passes on top."""
    listening = {"online": True, "schedule": "every_epoch"}
    add: Any = functools.partial(Setting, group="online=True", monitor=listening)
    spectral = headed(parametrizations.spectral_norm)
    return [
        add("plain"),
        add("batches as dataclass", module=net(pick=by_name),
            loaders=train(collate_fn=lambda: stacked)),
        add("tokens", module=PLAIN, data=tagged),
        add("torch.compile, body", module=AOT),
        add("gradient checkpointing, head too", module=HeadToo),
        add("parametrised, spectral_norm", module=spectral),
        add("hook, pruned", module=headed(pruned), **NO_VAL),
        add("several optimizers, manual", module=Manual),
        add("gradient accumulation", trainer={"accumulate_grad_batches": 2}),
        add("EMAWeightAveraging", trainer=EMA, note="online: raw weights"),
        add("bf16-mixed", trainer={"precision": "bf16-mixed"},
            by_hand=ByHand(dtype=torch.float32, autocast=True)),
    ]


def training() -> list[Setting]:
    add: Any = functools.partial(Setting, group="training")
    simple, averaged = {"callbacks": lambda: [WeightAveraging()]}, {"weights": "averaged"}
    return [
        add("manual optimisation", module=OneManual),
        add("several optimizers", module=Manual),
        add("gradient accumulation", trainer={"accumulate_grad_batches": 2}),
        add("WeightAveraging", trainer=simple, note="averaged, as validation"),
        add("EMAWeightAveraging", trainer=EMA, note="averaged, as validation"),
        add('EMAWeightAveraging, weights="raw"', trainer=EMA, by_hand=RAW,
            monitor={"weights": "raw"}),
        add('EMAWeightAveraging, weights="averaged"', trainer=EMA, monitor=averaged),
        add("EMAWeightAveraging, bf16-true, full", trainer=EMA | {"precision": "bf16-true"},
            monitor={"precision": "full"}, by_hand=ByHand(dtype=torch.float32)),
        add("StochasticWeightAveraging", module=PLAIN, trainer=SWA, by_hand=RAW,
            note="raw, as validation"),
        add('StochasticWeightAveraging, weights="averaged"', module=PLAIN, trainer=SWA,
            monitor=averaged),
        add("StochasticWeightAveraging, BatchNorm", trainer=SWA, by_hand=RAW,
            note="its extra epoch is measured"),
    ]


def trainers() -> list[Setting]:
    add: Any = functools.partial(Setting, group="trainer")
    bare = {"barebones": True, "log_every_n_steps": None, "logger": None}
    one, both = ByHand(samples=BATCH), ByHand(samples=BATCH, val_samples=BATCH)
    return [
        add("val_check_interval=0.5", trainer={"val_check_interval": 0.5}),
        add("check_val_every_n_epoch=2", trainer={"check_val_every_n_epoch": 2}),
        add("num_sanity_val_steps=0", trainer={"num_sanity_val_steps": 0}),
        add("max_steps", trainer={"max_epochs": -1, "max_steps": 4}, note="ends within an epoch"),
        add("limit_train_batches=2", trainer={"limit_train_batches": 2}, note="measured: all"),
        add("limit_val_batches=1", trainer={"limit_val_batches": 1}, note="measured: all"),
        add("overfit_batches=1", trainer={"overfit_batches": 1}, warns=["overfit"], by_hand=one,
            note="measured: the batch, all of val"),
        add("fast_dev_run=1", trainer={"fast_dev_run": 1}, by_hand=both, note="measured: these"),
        add("no validation loop", **NO_VAL),
        add("no logger", trainer={"logger": False}),
        add("several loggers", trainer={"logger": two_loggers}),
        add("barebones", trainer=bare, warns=["barebones"]),
    ]


def sources() -> list[Setting]:
    add: Any = functools.partial(Setting, group="data")
    own = with_train(lambda data: DataLoader(Items(data.train), batch_sampler=Pairs()))
    two = {"trainer": {"limit_train_batches": 2}, "by_hand": ByHand(samples=2 * BATCH)}
    subset = train(shuffle=lambda: False, sampler=lambda: SubsetRandomSampler(range(30)))
    return [
        add("iterable data set", loaders=with_train(stream)),
        add("iterable data set, limit_train_batches=2", loaders=with_train(stream), **two),
        add("CombinedLoader", module=net(pick=from_b), loaders=with_train(combined),
            monitor={"dataloader": "b"}),
        add("batch sampler", loaders=own, by_hand=ByHand(batch=64), note="in batches of 64"),
        add("weighted sampler", loaders=with_train(weighted), note="measured: each sample once"),
        add("SubsetRandomSampler", loaders=subset, by_hand=ByHand(samples=30)),
        add("drop_last", loaders=train(drop_last=lambda: True), note="measured: every sample"),
        add("generator=", loaders=train(generator=lambda: seeded(5))),
        add("random augmentation, dataloader=", loaders=with_train(noisy),
            monitor={"dataloader": clean}),
        add("on_after_batch_transfer", loaders=augmented, by_hand=HALVED),
        add("reload_dataloaders_every_n_epochs", loaders=augmented, by_hand=HALVED,
            trainer={"reload_dataloaders_every_n_epochs": 1}),
        add("num_workers=1", loaders=train(num_workers=lambda: 1)),
        add("several validation loaders", loaders=two_val, val=("val0", "val1")),
    ]


# fmt: on


def precisions() -> Iterator[Setting]:
    """In half precision nothing may differ either.

    By hand the same kernels see batches of the same shape, and both read halves as float32.
    """
    kinds = {
        "32-true": ByHand(dtype=torch.float32),
        "bf16-mixed": ByHand(dtype=torch.float32, autocast=True),
        "16-mixed": ByHand(dtype=torch.float32, autocast=True),
        "bf16-true": ByHand(dtype=torch.bfloat16),
        "16-true": ByHand(dtype=torch.float16),
        "64-true": ByHand(dtype=torch.float64, tolerance=1e-12),
    }
    full = dict.fromkeys(kinds, kinds["32-true"]) | {"64-true": kinds["64-true"]}
    for choice, table in {"trainer": kinds, "full": full}.items():
        for name, by_hand in table.items():
            yield Setting(
                f'{name}, precision="{choice}"',
                "precision",
                trainer={"precision": name},
                monitor={"precision": choice},
                by_hand=by_hand,
                warns=["fp16 is not supported on CPU"] if name == "16-mixed" else [],
                note="Lightning makes it bf16-mixed on the CPU" * (name == "16-mixed"),
            )


SETTINGS = [
    *(*batches(), *heads(), *models(), *online()),
    *(*training(), *trainers(), *sources(), *precisions()),
]

# -- two fits --------------------------------------------------------------------------------------


class Keeper(pl.Callback):
    """Keeps losses, the weights of the last epoch's end, and what the classifier saw in it."""

    def __init__(self, setting: Setting, *, listens: bool) -> None:
        self.setting, self.listens = setting, listens
        self.losses: list[Tensor] = []
        self.raw: dict[str, Tensor] = {}
        self.heard: list[tuple[Tensor, Tensor, Tensor]] = []
        self._handle: Any = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.heard = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.listens:
            labels = batch.target if isinstance(batch, Sample) else batch[1]

            def hear(module: Any, args: Any, output: Tensor) -> None:
                self.heard.append((args[0].detach(), labels, output.detach()))

            self._handle = self.setting.by_hand.head(pl_module).register_forward_hook(hear)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].clone())
        if self._handle is not None:
            self._handle.remove()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.raw = {k: v.clone() for k, v in pl_module.state_dict().items()}


@dataclass
class Fit:
    """A trained module, what it left everywhere, and the monitor if there was one."""

    module: Any
    left: dict[str, Any]
    keeper: Keeper
    monitor: NeuralCollapse | None
    forwards: list[int]


def fit(setting: Setting, folder: Path | None = None) -> Fit:
    """Train; with the monitor if there is a folder for its files."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        machine = ["LeafSpec", "does not have many workers"]
        for message in [*machine, *setting.warns]:
            warnings.filterwarnings("ignore", f"(?s).*{message}")
        return _fit(setting, folder)


def _fit(setting: Setting, folder: Path | None) -> Fit:
    pl.seed_everything(7, verbose=False)
    data = setting.data()
    given = setting.module()
    module = getattr(given, "_orig_mod", given)
    monitor, made = None, {k: v() if callable(v) else v for k, v in setting.trainer.items()}
    keeper = Keeper(setting, listens=folder is None and "online" in _options(setting, module))
    callbacks = [*made.pop("callbacks", []), keeper]
    if folder is not None:
        options: dict[str, Any] = {"run_dir": folder, "verbose": False, "on_error": "raise"}
        monitor = NeuralCollapse(**options | dict(_options(setting, module)))
        callbacks.append(monitor)
    plain: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu", "logger": False}
    plain["log_every_n_steps"] = 1
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(callbacks=callbacks, **plain | dict.fromkeys(quiet, False) | made)
    with _counting(setting) as forwards:
        trainer.fit(given, **setting.loaders(data))
    return Fit(module, _left(trainer, module, keeper), keeper, monitor, forwards)


def _options(setting: Setting, module: Any) -> Mapping[str, Any]:
    return setting.monitor(module) if callable(setting.monitor) else setting.monitor


@contextlib.contextmanager
def _counting(setting: Setting) -> Iterator[list[int]]:
    """Count how often the classifier runs within each measurement."""
    counts: list[int] = []
    measure = Measurement.measure

    def counted(self: Measurement, *args: Any, **kwargs: Any) -> Any:
        counts.append(0)

        def count(*_: Any) -> None:
            counts[-1] += 1

        handle = setting.by_hand.head(self.module).register_forward_hook(count)
        try:
            return measure(self, *args, **kwargs)
        finally:
            handle.remove()

    with mock.patch.object(Measurement, "measure", counted):
        yield counts


def _left(trainer: pl.Trainer, module: Any, keeper: Keeper) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    generator: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "weights": {k: v.detach().clone() for k, v in module.named_parameters()},
        "buffers": {k: v.clone() for k, v in module.named_buffers()},
        "gradients": {k: p.grad for k, p in module.named_parameters()},
        "trainable": {k: p.requires_grad for k, p in module.named_parameters()},
        "optimizers": [each.state_dict() for each in trainer.optimizers],
        "schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
        "losses": keeper.losses,
        "last epoch": keeper.raw,
        "modes": {k: m.training for k, m in module.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": (generator["state"]["key"].tolist(), generator["state"]["pos"]),
        "python": random.getstate(),
        "hooks": {k: [len(getattr(m, h)) for h in hooks] for k, m in module.named_modules()},
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "steps": (trainer.global_step, trainer.current_epoch),
    }


# -- by hand ---------------------------------------------------------------------------------------


class Hand(NamedTuple):
    features: Tensor
    labels: Tensor
    logits: Tensor
    layers: dict[str, Tensor]
    batches: int


def firsts(data: tuple[Any, Tensor], count: int | None) -> tuple[Any, Tensor]:
    return at(data[0], slice(count)), data[1][:count]


@torch.no_grad()
def collect(how: ByHand, module: Any, data: tuple[Any, Tensor], size: int = BATCH) -> Hand:
    """Run the trained module over raw tensors, in the data set's order."""
    labels = data[1]
    module.eval()
    if how.dtype is not None:
        module.to(how.dtype)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how.autocast)
    parts: list[list[Tensor]] = []
    for start in range(0, len(labels), size):
        x = at(data[0], slice(start, min(start + size, len(labels))))
        x = x.to(how.dtype) if how.dtype is not None else x
        with autocast:
            features, head = how.features(module, x), how.head(module)
            logits = head(features) if how.logits is None else how.logits(head, features)
            inner = [layer(module, x) for layer in how.layers.values()]
        parts.append([features, logits, *inner])
    h, z, *inner = (torch.cat(each).flatten(0, -2) for each in zip(*parts, strict=True))
    layers = dict(zip(how.layers, inner, strict=True))
    return Hand(h, labels.flatten(), z, layers, len(parts))


def reports(setting: Setting, plain: Fit) -> tuple[dict[str, CollapseReport], int]:
    """Measure every split by hand; also return the batches of one measurement of all of them."""
    module, data, how = plain.module.eval(), setting.data(), setting.by_hand
    trained = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(plain.keeper.raw)
    online = _online(plain, how.head(module)) if plain.keeper.heard else {}
    if how.weights == "trained":
        module.load_state_dict(trained)
    train = collect(how, module, firsts(data.train, how.samples), how.batch)
    head = {"weight": how.head(module).weight.detach().flatten(1), "bias": how.head(module).bias}
    made = measure_collapse(
        train.features, train.labels, **head, logits=train.logits, null_seed=SHUFFLE
    )
    found = {"train": made, NULL_SPLIT: made.null(SHUFFLE)} | online
    layers = {k: measure_collapse(h, train.labels) for k, h in train.layers.items()}
    found |= {layer_split("train", k): report for k, report in layers.items()}
    count = train.batches
    for split in setting.val:
        val = collect(how, module, firsts(data.val, how.val_samples))
        found[split] = measure_collapse(
            val.features, val.labels, **head, logits=val.logits, reference=made.moments
        )
        for k, h in val.layers.items():
            found[layer_split(split, k)] = measure_collapse(
                h, val.labels, reference=layers[k].moments
            )
        count += val.batches
    return found, count


def _online(plain: Fit, head: Any) -> dict[str, CollapseReport]:
    features, labels, logits = (torch.cat(each) for each in zip(*plain.keeper.heard, strict=True))
    with torch.no_grad():
        head(features[:1].to(head.weight.dtype))  # a hook may make the weight of other tensors
    report = measure_collapse(features, labels, head.weight, head.bias, logits=logits)
    return {ONLINE_SPLIT: report}


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a setting showed.

    Attributes:
        traces: What the monitor changed, by name; empty if all is identical to the bit.
        passes: Runs of the network per measurement, over the batches of the data.
        differences: Relative difference to the numbers by hand, by split and metric.
        graphs: How many graphs were compiled, with the monitor as without.
    """

    traces: list[str]
    passes: float
    differences: dict[str, float]
    graphs: int


def outcome(setting: Setting, folder: Path) -> Outcome:
    """Train twice, compare everything, and measure by hand what the plain fit gave."""
    plain, watched = fit(setting), fit(setting, folder)
    traces = [name for name, value in plain.left.items() if not _equal(value, watched.left[name])]
    by_hand, batches = reports(setting, plain)
    assert watched.monitor is not None
    assert math.isfinite(by_hand["train"].nc1)  # nan would agree with nan
    history = watched.monitor.history
    differences: dict[str, float] = {}
    for split in history["split"].unique():
        row = history[history["split"] == split].iloc[-1]
        if split not in by_hand:
            differences[f"{split}: no such split by hand"] = math.inf
            continue
        for name, value in _values(split, by_hand[split]).items():
            differences[f"{split}/{name}"] = _difference(float(row[name]), value)
    missing = set(by_hand) - set(history["split"])
    if "null_seed" not in _options(setting, watched.module):
        missing -= {NULL_SPLIT}
    differences |= {f"{split} was not measured": math.inf for split in missing}
    measured = sum(watched.forwards) / len(history["epoch"].unique())
    return Outcome(traces, measured / batches, differences, watched.left["graphs"])


def _values(split: str, report: CollapseReport) -> dict[str, float]:
    values = report.as_dict() | {"error": report.error, "cross_entropy": report.cross_entropy}
    wanted = [name for name in names_of(split) if name in values]
    if split == ONLINE_SPLIT:
        wanted = [name for name in wanted if name in SHAPE or name not in report.as_dict()]
    return {name: values[name] for name in wanted}


def _difference(ours: float, theirs: float) -> float:
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    largest = max(abs(ours), abs(theirs))
    return math.inf if math.isnan(largest) else abs(ours - theirs) / largest


def _equal(one: Any, two: Any) -> bool:
    """Compare to the bit; nan equals nan, and zero is not minus zero."""
    if isinstance(one, Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        return same and _bytes(one) == _bytes(two)
    if isinstance(one, Mapping):
        return list(one) == list(two) and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_equal, one, two))
    return type(one) is type(two) and one == two


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def main() -> None:
    """Print the table as Markdown."""
    print("| group | setting | identical | passes | largest difference | note |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number, setting in enumerate(SETTINGS):
            shown = outcome(setting, Path(folder) / str(number))
            same = "no: " + ", ".join(shown.traces) if shown.traces else "yes"
            worst = max(shown.differences, key=lambda name: shown.differences[name])
            size = shown.differences[worst]
            where = f" ({worst})" if size > 0 else ""
            print(
                f"| {setting.group} | {setting.name} | {same} | {shown.passes:g} | "
                f"{size:.1e}{where} | {setting.note} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
