"""Inputs and labels from the batches that people's loaders give, and what the network gets."""

from __future__ import annotations

import functools
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ncmonitor import InputError
from ncmonitor.callbacks.trainers.batches import (
    check_labels_usable,
    default_batch_to_xy,
    run_network,
)

X, X2, Y = torch.randn(4, 6), torch.randn(4, 2), torch.tensor([0, 1, 2, 1])
IDS, MASK = torch.arange(12).view(4, 3), torch.ones(4, 3, dtype=torch.long)


class Encoding(UserDict[str, Any]):
    """Like transformers' BatchEncoding: a UserDict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def keys(self) -> Any:
        return self.data.keys()

    def items(self) -> Any:
        return self.data.items()

    def to(self, device: str) -> Encoding:
        return self


class Graph:
    """Like torch_geometric's Data: entries in a store, ``None`` where a usual one is missing."""

    def __init__(self, **store: Any) -> None:
        self.__dict__["_store"] = store

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_store"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def x(self) -> Any:
        return self._store.get("x")

    @property
    def y(self) -> Any:
        return self._store.get("y")

    def keys(self) -> list[str]:
        return [*self._store]

    def to_dict(self) -> dict[str, Any]:
        return dict(self._store)


class Sample(NamedTuple):
    image: Tensor
    sample_id: Tensor
    label: Tensor


Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Views:
    left: Tensor
    right: Tensor
    target: Tensor
    path: list[str]


@dataclass
class Slim:
    __slots__ = ("img", "target")
    img: Tensor
    target: Tensor


# -- one tensor of inputs --------------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "tuple": (X, Y),
    "list": [X, Y],
    "tuple with an index and a path": (X, Y, torch.arange(4), ["a", "b", "c", "d"]),
    "tuple with sample weights": (X, Y, Y, torch.rand(4)),
    "mapping": {"image": X, "label": Y},
    "mapping spelt otherwise": {"Image": X, "Target": Y},
    "mapping with notes": {
        "index": torch.arange(4), "img": X, "path": ["a"], "sample_weight": X2[:, 0], "label": Y,
    },
    "one tensor of unknown name": {"spectrogram": X, "y": Y, "speaker": ["a", "b", "c", "d"]},
    "class names beside the label": {"image": X, "label": ["cat"] * 4, "target": Y},
    "two granularities": {"img": X, "fine_label": Y, "coarse_label": Y * 0},
    "webdataset": {"__key__": ["0"], "__url__": ["u"], "png": X, "cls": Y},
    "named tuple": Sample(X, torch.arange(4), Y),
    "named tuple whose names tell nothing": Pair(X, Y),
    "attributes": SimpleNamespace(x=X, y=Y),
    "slots": Slim(X, Y),
    "graph of one tensor": Graph(x=X, y=Y),
    "UserDict": Encoding(pixel_values=X, labels=Y),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PLAIN))
def test_inputs_and_labels_of_a_usual_batch(name: str) -> None:
    inputs, labels = default_batch_to_xy(PLAIN[name])
    assert inputs is X
    assert labels is Y


@pytest.mark.parametrize("array", [Y[:, None], Y[:, None].numpy(), Y[:, None].to(torch.uint8)])
def test_a_column_of_integer_labels_is_squeezed(array: Any) -> None:
    for batch in ((X, array), {"x": X, "y": array}):
        labels = default_batch_to_xy(batch)[1]
        assert labels.shape == (4,)
        assert labels.tolist() == Y.tolist()


def test_a_column_of_token_labels_beside_tokens_is_kept() -> None:
    batch = {"input_ids": IDS[:, :1], "attention_mask": MASK[:, :1], "labels": IDS[:, 1:2]}
    assert default_batch_to_xy(batch)[1].shape == (4, 1)
    assert default_batch_to_xy((IDS[:, :1], IDS[:, 1:2]))[1].shape == (4, 1)


# -- several inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, Encoding])
def test_a_text_batch_keeps_all_but_labels_and_notes(kind: Any) -> None:
    text = {"input_ids": IDS, "attention_mask": MASK}
    inputs, labels = default_batch_to_xy(kind(**text, idx=torch.arange(4), labels=Y))
    assert inputs == text
    assert labels is Y
    assert default_batch_to_xy({"input_ids": IDS, "label": Y})[0] == {"input_ids": IDS}


def test_several_tensors_stay_together_and_objects_whole() -> None:
    assert default_batch_to_xy({"image": X, "table": X2, "y": Y})[0] == {"image": X, "table": X2}
    graph = Graph(x=X, edge_index=IDS[:2], batch=torch.zeros(4), y=Y)
    assert default_batch_to_xy(graph) == (graph, Y)
    featureless = Graph(edge_index=IDS[:2], batch=torch.zeros(4), y=Y)
    views = Views(X, X2, Y, ["a"])
    assert default_batch_to_xy(views) == (views, Y)
    assert default_batch_to_xy(featureless)[1] is Y


# -- no labels, no telling -------------------------------------------------------------------------

UNLABELLED: dict[str, Any] = {
    "tensor": X,
    "array": X.numpy(),
    "list of one": [X],
    "mapping": {"image": X, "index": torch.arange(4)},
    "text": Encoding(input_ids=IDS, attention_mask=MASK),
    "graph": Graph(x=X, edge_index=IDS[:2], y=None),
}


@pytest.mark.parametrize("name", list(UNLABELLED))
def test_missing_labels_are_said_to_be_missing(name: str) -> None:
    with pytest.raises(InputError, match=r"holds no labels .*batch_to_xy=.* or dataloader= a lab"):
        default_batch_to_xy(UNLABELLED[name])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (None, "cannot tell inputs and labels in a batch that is a NoneType"),
        ("text", "in a batch that is a 'text'"),
        (
            {"label": Y},
            r"a dict, a mapping with label: Tensor of shape \(4,\) and dtype int64;",
        ),
        ({"path": ["a"], "label": Y}, "path: list of length 1, label: Tensor"),
        (iter([1]), "cannot tell inputs and labels in a batch that is a list_iterator"),
    ],
)
def test_an_unclear_batch_is_described(batch: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        default_batch_to_xy(batch)
    assert "pass batch_to_xy=, a function from a batch to (inputs, labels)" in str(raised.value)


def test_a_missing_label_says_what_there_was() -> None:
    with pytest.raises(InputError, match=r"a list of length 1 \(Tensor of shape \(4, 6\) and dtyp"):
        default_batch_to_xy([X])
    many = {f"key{i}": X for i in range(9)}
    with pytest.raises(InputError, match=r"key5: Tensor of shape \(4, 6\) and .*, \.\.\."):
        default_batch_to_xy(many)


# -- labels that are no classes --------------------------------------------------------------------

FEATURES = torch.randn(4, 8)
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.1, 0.1, 0.8], [0.0, 0.5, 0.5]])
ONE_HOT = nn.functional.one_hot(Y, 3)
UNUSABLE: dict[str, tuple[Any, str]] = {
    "none": (None, "labels are None; pass batch_to_xy="),
    "soft": (SOFT, r"mixup: no single class per sample; pass batch_to_xy=lambda batch: \(batch\[0\]"
        r", batch\[1\]\.argmax\(1\)\) if the hard class is meant, or a dataloader= without mixup"),
    "soft, half": (SOFT.bfloat16(), "soft labels or mixup"),
    "soft over more classes": (torch.full((4, 5), 0.2), r"over 5, not 3 classes\), soft labels"),
    "one-hot floats": (ONE_HOT.float(), r"one-hot: expected class indices .*argmax\(1\)"),
    "one-hot integers": (ONE_HOT, r"one-hot; expected .*argmax\(1\)"),
    "one-hot booleans": (ONE_HOT.bool(), r"one-hot; expected .*argmax\(1\)"),
    "multi-hot": (ONE_HOT | ONE_HOT.roll(1, 1), "mark several classes per sample"),
    "multi-hot floats": ((ONE_HOT | ONE_HOT.roll(1, 1)).float(), "several labels, real targets"),
    "float classes": (Y.float(), r"torch.float32, but classes are integers: .*1\]\.long\(\)\)"),
    "a column of float classes": (Y.float()[:, None], r"pass .*\[1\]\.long\(\)\.squeeze\(1\)\)"),
    "a column": (Y[:, None], r"shape \(4, 1\); expected \(B,\): pass .*\[1\]\.squeeze\(1\)"),
    "real targets": (X[:, 0], "name no classes"),
    "another view": (torch.randn(4, 3, 8, 8), "another input, or no classification"),
    "mixup": ((Y, Y.flip(0), 0.3), r"pair of labels with a weight: .*\(batch\[0\], batch\[1\]\[0"),
    "mixup, tensor weight": ([Y, Y.flip(0), torch.tensor(0.3)], "pair of labels with a weight"),
    "two label tensors": ((Y, Y), "a list of samples or several batches"),
    "samples": ((X[0], Y[0]), "a list of samples or several batches"),
    "words": (["cat", "dog", "cat", "cat"], r"labels are words, .*names\.index\(name\)"),
    "words in an array": (np.array(["cat", "dog"]), "labels are words"),
    "mapping": ({"boxes": X, "labels": Y}, r"\(batch\[0\], batch\[1\]\['labels'\]\)"),
    "booleans": (Y > 0, "labels must be integers, but have dtype torch.bool"),
    "too few": (Y[:3], "got 4 rows, 3 labels"),
    "tokens without token features": (IDS, "class indices of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(UNUSABLE))
def test_labels_that_name_no_single_class_are_explained(name: str) -> None:
    labels, words = UNUSABLE[name]
    with pytest.raises(InputError, match=words):
        check_labels_usable(labels, FEATURES, 3)


@pytest.mark.parametrize(
    ("labels", "features"),
    [
        (Y, FEATURES),
        (Y.numpy(), FEATURES),
        ([0, 1, 2, 1], FEATURES),
        (Y.to(torch.uint8), FEATURES),
        (torch.tensor([0, -100, 5, 1]), FEATURES),  # range and ignore_index: checked elsewhere
        (torch.zeros(4, 3, dtype=torch.long), torch.randn(4, 3, 8)),  # tokens, T = K
        (torch.zeros(4, 1, dtype=torch.long), torch.randn(4, 1, 8)),
    ],
)
def test_class_indices_pass(labels: Any, features: Tensor) -> None:
    check_labels_usable(labels, features, 3)


@pytest.mark.parametrize("weight", [0.3, torch.tensor(0.3), np.float64(0.3)])
def test_mixup_laid_flat_in_the_batch_is_not_taken_for_labels(weight: Any) -> None:
    with pytest.raises(InputError, match=r"two labels per sample and a weight: .*batch\[1\]\) if"):
        default_batch_to_xy((X, Y, Y.flip(0), weight))


# -- what the network gets -------------------------------------------------------------------------


class Net(pl.LightningModule):
    """Keeps what its ``forward`` was given; the forwards below are put in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.got: Any = None


def net(forward: Callable[..., Any]) -> Any:
    return type("Own", (Net,), {"forward": forward})()


def one(self: Any, x: Any) -> None:
    self.got = x


def whole(self: Any, batch: Any) -> None:
    self.got = batch


def two(self: Any, image: Any, table: Any) -> None:
    self.got = (image, table)


def text(self: Any, input_ids: Any, attention_mask: Any = None, *, head_mask: Any = None) -> None:
    self.got = {"input_ids": input_ids, "attention_mask": attention_mask}


def renamed(self: Any, tokens: Any, attention_mask: Any = None) -> None:
    self.got = tokens


def anything(self: Any, **inputs: Any) -> None:
    self.got = inputs


def passed_on(self: Any, *args: Any, **kwargs: Any) -> None:
    self.got = (args, kwargs)


def graph_parts(self: Any, x: Any, edge_index: Any) -> None:
    self.got = (x, edge_index)


@functools.wraps(text)
def decorated(*args: Any, **kwargs: Any) -> None:
    text(*args, **kwargs)


TEXT = {"input_ids": IDS, "attention_mask": MASK}
PARTS = {"image": X, "table": X2}
GRAPH = Graph(x=X, edge_index=IDS, batch=Y, y=Y)
VIEWS = Views(X, X2, Y, ["a"])
CALLS: dict[str, tuple[Any, Any, Any]] = {
    "a tensor": (one, X, X),
    "a mapping by name": (text, TEXT, TEXT),
    "entries that forward does not take": (text, TEXT | {"lengths": Y}, TEXT),
    "a missing optional entry": (text, {"input_ids": IDS}, TEXT | {"attention_mask": None}),
    "a mapping to keywords": (anything, TEXT, TEXT),
    "a mapping passed on": (passed_on, TEXT, ((), TEXT)),
    "a UserDict by name": (text, Encoding(TEXT), TEXT),
    "a decorated forward": (decorated, TEXT, TEXT),
    "the only entry": (one, {"input_ids": IDS}, IDS),
    "the usual entry": (one, PARTS, X),
    "text to one parameter": (one, TEXT, TEXT),
    "text and an image to one parameter": (one, TEXT | {"image": X}, TEXT | {"image": X}),
    "names of which a required one is missing": (renamed, TEXT, TEXT),
    "a list beside an optional parameter": (renamed, [X, X2], [X, X2]),
    "the whole batch": (whole, PARTS, PARTS),
    "two entries": (two, PARTS, (X, X2)),
    "a pair": (two, (X, X2), (X, X2)),
    "a list of two": (two, [X, X2], (X, X2)),
    "a pair to one parameter": (one, (X, X2), (X, X2)),
    "a graph": (whole, GRAPH, GRAPH),
    "a graph under another name": (one, Graph(edge_index=IDS, y=Y), None),
    "a graph's parts": (graph_parts, GRAPH, (X, IDS)),
    "a dataclass": (whole, VIEWS, VIEWS),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CALLS))
def test_inputs_reach_forward_as_it_takes_them(name: str) -> None:
    forward, inputs, expected = CALLS[name]
    module = net(forward)
    run_network(module, inputs)
    assert repr(module.got) == repr(inputs if expected is None else expected)


def test_a_compiled_module_is_called_as_the_plain_one_is() -> None:
    for compiled in (False, True):
        module = net(text)
        if compiled:
            module.compile(backend="eager")
        run_network(module, TEXT | {"lengths": Y})
        assert module.got == TEXT
    module = net(text)
    run_network(torch.compile(module, backend="eager"), TEXT | {"lengths": Y})  # type: ignore[arg-type]
    assert module.got == TEXT
    module = net(text)
    module.forward = torch.compile(module.forward, backend="eager")
    run_network(module, TEXT | {"lengths": Y})
    assert module.got == TEXT
    module = net(text)
    module.forward = functools.partial(module.forward, head_mask=1)
    run_network(module, TEXT | {"lengths": Y})
    assert module.got == TEXT


def test_a_forward_without_a_signature_gets_its_inputs_as_they_are() -> None:
    class Strange:
        __signature__ = "none"

        def __call__(self, inputs: Any) -> Any:
            return inputs

    module = Net()
    module.forward = Strange()  # type: ignore[method-assign]
    assert run_network(module, TEXT) is TEXT


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("how", ["plain", "compiled", "wrapped"])
def test_a_module_without_forward_is_told_what_to_pass(package: str, how: str) -> None:
    lightning = pytest.importorskip(package)

    class StepOnly(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.loss, self.net = nn.CrossEntropyLoss(), nn.Linear(6, 3)

    module: Any = StepOnly()
    if how == "compiled":
        module.forward = torch.compile(module.forward, backend="eager")
    if how == "wrapped":
        module = torch.compile(module, backend="eager")
    words = r"define forward, or pass forward=lambda module, x: module\.net\(x\) .*: loss, net\)"
    with pytest.raises(InputError, match=f"StepOnly does not define forward, .*: {words}"):
        run_network(module, X)


def test_ones_own_lightning_module_with_a_forward_is_run() -> None:
    class LightningModule(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    LightningModule.forward.__qualname__ = "LightningModule.forward"
    assert run_network(LightningModule(), X).shape == (4, 3)
