"""Networks of the matrix of settings: bodies and heads of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from matrix_data import WIDTH
from toys import CLASSES


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


class OwnHead(nn.Module):
    """A linear head that is no layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))
        self.bias = nn.Parameter(torch.randn(CLASSES))

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.weight.T + self.bias


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
