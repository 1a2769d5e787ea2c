"""The unconstrained-features model: free features, trained, against the exact optimum."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ncmonitor.callbacks import NeuralCollapse
from ncmonitor.errors import InputError, check_whole
from ncmonitor.recipes.data.subsets import Selection, class_sizes
from ncmonitor.recipes.free_features_theory import lower_bound
from ncmonitor.theory import UfmOptimum, ufm_objective, ufm_optimum

Batch = tuple[Tensor, Tensor]


class SampleIndices(pl.LightningDataModule):
    """Samples that are nothing but their index and class: one batch holds them all.

    Args:
        num_classes: K.
        per_class: Samples of the largest class; of every class unless ``imbalance`` is given.
        imbalance: ``"exponential"`` or ``"step"``, as for images: see
            :func:`~ncmonitor.recipes.data.subsets.class_sizes`.
        imbalance_ratio: Largest class over smallest.
        minority: Share of the classes that ``"step"`` makes small.
    """

    def __init__(
        self,
        num_classes: int = 10,
        per_class: int = 20,
        imbalance: str | None = None,
        imbalance_ratio: float | None = None,
        minority: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_classes", num_classes, 2), ("per_class", per_class, 1)):
            check_whole(name, value)
            if value < least:
                raise InputError(f"SampleIndices: {name} must be at least {least}, but is {value}")
        # Says what is wrong, in the words that data of images have for it.
        Selection(imbalance=imbalance, ratio=imbalance_ratio, minority=minority)
        self.counts = [per_class] * num_classes
        if imbalance is not None and imbalance_ratio is not None:
            self.counts = class_sizes(imbalance, num_classes, per_class, imbalance_ratio, minority)
        self.labels = torch.arange(num_classes).repeat_interleave(torch.tensor(self.counts))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        samples = len(self.labels)
        return DataLoader(TensorDataset(torch.arange(samples), self.labels), batch_size=samples)


class GapToOptimum(NamedTuple):
    """How far a point of the model is from the best there is.

    Attributes:
        objective: Loss and decays.
        optimum: Their minimum; for unequal classes a lower bound of it, see
            :func:`~ncmonitor.recipes.free_features_theory.lower_bound`.
        gap: ``objective / optimum − 1``.
        weight_norm: Mean ‖w_c‖.
        feature_norm: Mean ‖h_i‖.
        geometry: Relative distance of the Gram matrix of all classifier rows and class means, in
            units of their lengths at the optimum, from the optimal one: 0 only if lengths, angles
            and duality are all exact. ``nan`` for unequal classes.
    """

    objective: float
    optimum: float
    gap: float
    weight_norm: float
    feature_norm: float
    geometry: float


class UnconstrainedFeatures(pl.LightningModule):
    """Free features, one vector per sample, and a linear classifier, trained by gradient descent.

    The objective is that of :func:`ncmonitor.theory.ufm_optimum`: its decays are part of the loss,
    the optimiser has none. Each step sees every sample. With ``NeuralCollapse`` attached, every
    measured epoch also prints how far the model is from the exact optimum and logs it as
    ``ufm/...``, the fields of :class:`GapToOptimum`.

    Args:
        dim: d, dimension of the features.
        loss: ``"ce"`` for cross-entropy, ``"mse"`` for ``½ ‖z − e_y‖²``.
        weight_decay_w: λ_W.
        weight_decay_h: λ_H.
        weight_decay_b: λ_b; 0 for an unregularised bias, ``None`` for a classifier without bias.
        lr: Learning rate of the classifier; that of the features is ``lr · λ_W/λ_H``, with which
            both shrink at one rate: plain gradient descent in units that make the decays equal.
        momentum: Nesterov's.
        init_std: Standard deviation of the entries of both at the start.
    """

    features: nn.Embedding
    classifier: nn.Linear
    optimum: UfmOptimum | None
    labels: Tensor

    def __init__(
        self,
        dim: int = 16,
        loss: str = "ce",
        weight_decay_w: float = 5e-3,
        weight_decay_h: float = 5e-4,
        weight_decay_b: float | None = None,
        lr: float = 1.0,
        momentum: float = 0.8,
        init_std: float = 0.1,
    ) -> None:
        super().__init__()
        if loss not in ("ce", "mse"):
            raise InputError(f"UnconstrainedFeatures: loss must be ce or mse, but is {loss!r}")
        positive = {"dim": dim, "weight_decay_w": weight_decay_w, "weight_decay_h": weight_decay_h}
        for name, value in {**positive, "lr": lr, "init_std": init_std}.items():
            if not 0 < value < math.inf:
                raise InputError(f"UnconstrainedFeatures: {name} must be positive, but is {value}")
        if not 0 <= momentum < 1:
            raise InputError(
                f"UnconstrainedFeatures: momentum must lie in [0, 1), but is {momentum}"
            )
        self.dim, self.init_std = dim, init_std
        self.loss = cast(Literal["ce", "mse"], loss)
        self.decays = (weight_decay_w, weight_decay_h, weight_decay_b)
        self.lr, self.momentum = lr, momentum
        self._verbose = False

    def setup(self, stage: str) -> None:
        """Make the parameters, as many as the data has samples, and find the optimum."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SampleIndices):
            raise InputError(
                "UnconstrainedFeatures has a feature vector for every sample of SampleIndices, but "
                f"the data is {type(data).__name__}; use --data "
                "ncmonitor.recipes.free_features.SampleIndices"
            )
        self.optimum = self._exact(data.counts)
        if not (hasattr(self, "labels") and torch.equal(self.labels, data.labels)):  # a new fit
            self.labels, has_bias = data.labels, self.decays[2] is not None
            self.features = nn.Embedding(len(data.labels), self.dim)
            self.classifier = nn.Linear(self.dim, len(data.counts), bias=has_bias)
            for parameter in (self.features.weight, self.classifier.weight):
                nn.init.normal_(parameter, std=self.init_std)
            if has_bias:
                nn.init.zeros_(self.classifier.bias)

    def on_fit_start(self) -> None:
        """Ask to be told of measured epochs."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NeuralCollapse):
                self._verbose = callback.verbose
                if self._tell not in callback.after_measurement:
                    callback.after_measurement.append(self._tell)

    def forward(self, indices: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(indices))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        indices, labels = batch
        weight, bias = self.classifier.weight, self.classifier.bias
        value = ufm_objective(weight, self.features(indices), bias, labels, **self._terms())
        self.log("train_objective", value, on_step=False, on_epoch=True, prog_bar=True)
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decay_w, decay_h, _ = self.decays
        groups: list[dict[str, Any]] = [
            {"params": self.classifier.parameters()},
            {"params": self.features.parameters(), "lr": self.lr * decay_w / decay_h},
        ]
        return torch.optim.SGD(groups, self.lr, self.momentum, nesterov=self.momentum > 0)

    @torch.no_grad()
    def standing(self) -> GapToOptimum:
        """Compare the model as it is with the optimum."""
        weight, features = (m.weight.cpu().double() for m in (self.classifier, self.features))
        bias = None if self.decays[2] is None else self.classifier.bias.cpu().double()
        point = (weight, features, bias, self.labels)
        objective = float(ufm_objective(*point, **self._terms()))
        best = self.optimum
        optimum = lower_bound(*point, **self._terms()) if best is None else best.objective
        geometry = math.nan
        if best is not None:
            means = features.view(len(weight), -1, self.dim).mean(1)
            gram, ideal = (
                torch.cat([w / best.weight_norm, m / best.feature_norm])
                for w, m in ((weight, means), (best.weight, best.means))
            )
            gram, ideal = gram @ gram.T, ideal @ ideal.T
            geometry = float((gram - ideal).norm() / ideal.norm())
        return GapToOptimum(
            objective=objective,
            optimum=optimum,
            gap=objective / optimum - 1 if optimum > 0 else math.inf,
            weight_norm=float(weight.norm(dim=1).mean()),
            feature_norm=float(features.norm(dim=1).mean()),
            geometry=geometry,
        )

    def _exact(self, counts: list[int]) -> UfmOptimum | None:
        """Return the minimiser if the classes are equal; for others only a bound is known."""
        decay_w, decay_h, decay_b = self.decays
        if len(set(counts)) > 1:
            if self.loss == "ce" and decay_b == 0:
                raise InputError(
                    "with unequal classes, cross-entropy and an unregularised bias, the optimum is "
                    "not known; make weight_decay_b positive, or null for no bias"
                )
            return None
        best = ufm_optimum(
            self.loss, len(counts), self.dim, counts[0], decay_w, decay_h, weight_decay_b=decay_b
        )
        if not best.nontrivial:
            raise InputError(
                f"c = K √(n λ_W λ_H) is {best.c:.3g}, but must be below 1: with decays this strong "
                "the optimum is zero; make weight_decay_h smaller"
            )
        return best

    def _terms(self) -> Any:
        decay_w, decay_h, decay_b = self.decays
        return {
            "loss": self.loss,
            "weight_decay_w": decay_w,
            "weight_decay_h": decay_h,
            "weight_decay_b": decay_b or 0.0,
        }

    def _tell(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int) -> None:
        """Print and log the standing after a measured epoch."""
        standing = self.standing()
        found = {f"ufm/{k}": v for k, v in standing._asdict().items() if math.isfinite(v)}
        # Outside an epoch, log_dict and the bar's print drop what they get.
        inside = epoch == trainer.current_epoch + 1
        if inside:
            # A float would be rounded to float32; MPS has nothing better.
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            values = {k: torch.tensor(v, dtype=dtype) for k, v in found.items()}
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)
        else:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=trainer.global_step)
        if self._verbose and trainer.is_global_zero:
            (self.print if inside else print)(_line(standing, self.optimum))


def _line(now: GapToOptimum, best: UfmOptimum | None) -> str:
    if best is None:
        return (
            f"  ufm | objective {now.objective:.8f}, minimum above {now.optimum:.8f}: gap at most "
            f"{now.gap:.1e} | |w| {now.weight_norm:.4f} | |h| {now.feature_norm:.4f}"
        )
    return (
        f"  ufm | objective {now.objective:.8f}, minimum {now.optimum:.8f}: gap {now.gap:.1e} | "
        f"|w| {now.weight_norm:.4f} of {best.weight_norm:.4f} | "
        f"|h| {now.feature_norm:.4f} of {best.feature_norm:.4f} | geometry {now.geometry:.1e}"
    )
