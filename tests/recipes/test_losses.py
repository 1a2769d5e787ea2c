"""The losses against their formulas, and the squared loss against its decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import seeded
from ncmonitor import InputError, measure_collapse
from ncmonitor.recipes.losses import make_loss, ridge
from ncmonitor.recipes.networks.image_networks import MLP

K, DIM, PER_CLASS = 4, 6, 15
PARTS = ("mse_l_nc1", "mse_l_nc23", "mse_l_perp")
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])


def balanced() -> tuple[Tensor, Tensor]:
    """Blobs about means that are not centred, (60, 6) in float64."""
    labels = torch.arange(K * PER_CLASS) % K
    means = 1 + torch.randn(K, DIM, generator=seeded(0), dtype=torch.float64)
    noise = torch.randn(len(labels), DIM, generator=seeded(1), dtype=torch.float64)
    return means[labels] + 0.3 * noise, labels


def parts(features: Tensor, labels: Tensor, head: nn.Linear, ridge: float = 0.0) -> list[float]:
    values = measure_collapse(
        features, labels, head.weight.detach(), head.bias.detach(),
        metrics=["loss_aware"], ridge=ridge,
    ).as_dict()  # fmt: skip
    return [values[name] for name in PARTS]


def test_mse_is_the_sum_of_its_three_parts() -> None:
    images, labels = balanced()
    torch.manual_seed(0)
    model = MLP(inputs=DIM, hidden=(8, 5), classes=K).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loss = make_loss("mse")
    for _ in range(10):  # a network half-way: none of the parts is negligible
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        features = model.body(images)
        value = float(loss(model(images), labels))
    found = parts(features, labels, model.classifier)
    assert min(found) > 1e-3
    assert sum(found) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("mse", 1.0), ("mse_mean", K / 2)])
def test_with_weight_decay_the_parts_are_loss_and_penalty(name: str, scale: float) -> None:
    features, labels = balanced()
    torch.manual_seed(0)
    head = nn.Linear(DIM, K).double()
    ridge_ = ridge(name, weight_decay=0.02, classes=K)
    with torch.no_grad():
        norms = float(head.weight.square().sum() + head.bias.square().sum())
        value = float(make_loss(name)(head(features), labels))
    # What SGD minimises: the loss and half the weight decay; times what makes it the paper's.
    objective = scale * (value + 0.02 / 2 * norms)
    assert sum(parts(features, labels, head, ridge_)) == pytest.approx(objective, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "mse_mean"])
def test_sgd_with_weight_decay_ends_on_the_central_path_of_that_ridge(name: str) -> None:
    features, labels = balanced()
    torch.manual_seed(0)
    head = nn.Linear(DIM, K).double()
    sgd = torch.optim.SGD(head.parameters(), 0.1, momentum=0.9, weight_decay=0.02)
    loss = make_loss(name)
    for _ in range(3000):
        sgd.zero_grad()
        loss(head(features), labels).backward()
        sgd.step()
    right = ridge(name, weight_decay=0.02, classes=K)
    assert parts(features, labels, head, right)[2] < 1e-12
    assert parts(features, labels, head, right / 2)[2] > 1e-6
    assert parts(features, labels, head, right * 2)[2] > 1e-6


def test_squared_losses_by_hand() -> None:
    squares = torch.tensor([1 + 1 + 0.25, 0 + 0 + 9], dtype=torch.float64)
    torch.testing.assert_close(make_loss("mse")(LOGITS, LABELS), squares.mean() / 2)
    torch.testing.assert_close(make_loss("mse_mean")(LOGITS, LABELS), squares.mean() / 3)
    one_hot = nn.functional.one_hot(LABELS, 3).double()
    torch.testing.assert_close(make_loss("mse_mean")(LOGITS, LABELS), nn.MSELoss()(LOGITS, one_hot))


@pytest.mark.parametrize("smoothing", [None, 0.0, 0.3])
def test_label_smoothing_by_hand(smoothing: float | None) -> None:
    epsilon = 0.1 if smoothing is None else smoothing
    target = (1 - epsilon) * nn.functional.one_hot(LABELS, 3).double() + epsilon / 3
    expected = -(target * LOGITS.log_softmax(1)).sum(1).mean()
    loss = make_loss("label_smoothing", smoothing=smoothing)
    torch.testing.assert_close(loss(LOGITS, LABELS), expected)


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 3.0])
def test_focal_by_hand(gamma: float | None) -> None:
    p = LOGITS.softmax(1)[[0, 1], LABELS]
    expected = -((1 - p) ** (2.0 if gamma is None else gamma) * p.log()).mean()
    torch.testing.assert_close(make_loss("focal", gamma=gamma)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_survives_a_perfect_fit(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = make_loss("focal", gamma=gamma)(logits, torch.tensor([0]))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0  # and not nan


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mce",
            {},
            "unknown loss 'mce', expected one of: cross_entropy, mse, .*did you mean 'mse'",
        ),
        ("mse", {"smoothing": 0.1}, "smoothing is a parameter of the loss 'label_smoothing', but"),
        ("label_smoothing", {"gamma": 1.0}, "the loss is 'label_smoothing'; leave out gamma"),
        ("label_smoothing", {"smoothing": 1.0}, r"smoothing must lie in \[0, 1\), but is 1.0"),
        ("focal", {"gamma": -1.0}, "gamma must be at least 0, but is -1.0"),
        ("focal", {"gamma": float("nan")}, "gamma must be at least 0, but is nan"),
    ],
)
def test_mistakes_are_explained(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_loss(name, **options)


def test_a_ridge_is_for_squared_losses() -> None:
    with pytest.raises(InputError, match="defined for the losses 'mse' and 'mse_mean', not for"):
        ridge("focal", weight_decay=0.1, classes=3)
