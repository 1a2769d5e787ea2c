"""The settings in which the callback must leave no trace and tell the right numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from torch.utils.data import (
    DataLoader,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchvision.models import mobilenet_v2, resnet18, shufflenet_v2_x0_5
from torchvision.models.vision_transformer import VisionTransformer

from cases import seeded
from matrix_data import (
    BATCH,
    SHUFFLE,
    WIDTH,
    Augmenting,
    Data,
    Items,
    Named,
    Pairs,
    Stream,
    loaders,
    pictures,
    points,
    segmented,
    sentences,
    stacked,
    tagged,
    with_train,
)
from matrix_models import (
    Checkpointed,
    Compiled,
    CompiledHead,
    CompiledInPlace,
    CompiledWhole,
    Configured,
    Dense,
    FrozenByTrain,
    FrozenNorm,
    HeadToo,
    ImageNet,
    MadeInSetup,
    Manual,
    Net,
    OneManual,
    OwnHead,
    Pair,
    Reentrant,
    Scaled,
    TextNet,
    Tied,
    TimmStyle,
    TwoHeads,
    Whole,
    conv_body,
    conv_head,
    flat_conv_body,
    mlp,
    text_features,
)
from toys import CLASSES


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
    pooled = ByHand(lambda m, x: m.body(x).flatten(2).mean(2), lambda m: m.head[0], linear)
    dense = ByHand(lambda m, x: m.body(x).movedim(1, -1), logits=linear)
    return [
        whole("nn.Sequential", lambda: nn.Sequential(mlp(), nn.Linear(WIDTH, CLASSES)), "1"),
        whole("torchvision resnet18", lambda: resnet18(num_classes=3), "fc", 8),
        whole("torchvision mobilenet_v2", mobile, "classifier.1", 16, slow=True),
        whole("torchvision shufflenet_v2", lambda: shufflenet_v2_x0_5(num_classes=3), "fc", 16,
              slow=True),
        whole("torchvision ViT", vit, "heads.head", 8),
        whole("timm style, get_classifier()", TimmStyle, "fc"),
        add("Hugging Face style", module=ImageNet, data=pictures, by_hand=ByHand(ImageNet.pooled),
            loaders=form(lambda x, y: {"pixel_values": x, "labels": y})),
        whole("by name", Pair, "main", monitor={"classifier": "net.main"}),
        whole("by pattern", Pair, "main", monitor={"classifier": "*.ma?n"}),
        whole("by module", Pair, "main", monitor=lambda m: {"classifier": m.net.main}),
        add("1x1 convolution, pooled before", module=before, data=pictures, by_hand=pooled),
        add("of a class of its own", module=net(head=OwnHead)),
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
        add("torch.compile, whole", module=lambda: torch.compile(Net(), backend="aot_eager"),
            slow=True),
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
    both = ByHand(samples=BATCH, val_samples=BATCH)
    return [
        add("val_check_interval=0.5", trainer={"val_check_interval": 0.5}),
        add("check_val_every_n_epoch=2", trainer={"check_val_every_n_epoch": 2}),
        add("num_sanity_val_steps=0", trainer={"num_sanity_val_steps": 0}),
        add("max_steps", trainer={"max_epochs": -1, "max_steps": 4}, note="ends within an epoch"),
        add("limit_train_batches=2", trainer={"limit_train_batches": 2}, note="measured: all"),
        add("limit_val_batches=1", trainer={"limit_val_batches": 1}, note="measured: all"),
        add("overfit_batches=1", trainer={"overfit_batches": 1}, warns=["overfit"], by_hand=both,
            note="measured: these"),
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
