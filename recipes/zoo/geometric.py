"""The networks on graphs and on distances, of torch_geometric's layers (extra ``symmetry``)."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any, Final

import torch
from torch import Tensor, nn

from ncmonitor.recipes.zoo.zoo_data import Inputs
from ncmonitor.recipes.zoo.zoo_networks import ZooNetwork, mean_pool

INSTALL: Final = "pip install 'ncmonitor[symmetry]' (or: pip install torch_geometric)"
_WIDTH: Final = 32
_REACH: Final = 5.0  # no two points of a cloud are further apart


def is_there() -> bool:
    """Tell whether torch_geometric is installed."""
    return importlib.util.find_spec("torch_geometric") is not None


def _layers(name: str = "torch_geometric.nn") -> Any:
    with warnings.catch_warnings():
        # While it is imported it calls torch.jit.script, which torch 2.15 has deprecated.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        return importlib.import_module(name)


def message_passing(inputs: int) -> ZooNetwork:
    """Two graph isomorphism layers (Xu et al. 2019), averaged over the nodes.

    Args:
        inputs: Features per node.
    """
    return ZooNetwork(Nodes(inputs), mean_pool(), _WIDTH, 3)


def schnet() -> ZooNetwork:
    """Continuous-filter convolutions (SchNet, Schütt et al. 2017): it sees distances alone."""
    return ZooNetwork(Distances(), mean_pool(), _WIDTH, 4)


def relative_pointnet() -> ZooNetwork:
    """Two layers of PointNet++ (Qi et al. 2017) on all pairs: it sees differences of points."""
    return ZooNetwork(Differences(), mean_pool(), _WIDTH, 4)


class Nodes(nn.Module):
    """Graph isomorphism layers on ``(features, adjacency)``; ``(B, n, 32)``."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        convolution = _layers().GINConv
        self.first = convolution(_perceptron(inputs))
        self.second = convolution(_perceptron(_WIDTH))

    def forward(self, graphs: Inputs) -> Tensor:
        features, adjacency = graphs
        edges = _edges(adjacency)
        nodes = self.first(features.flatten(0, 1), edges).relu()
        out: Tensor = self.second(nodes, edges).relu().view(*features.shape[:2], -1)
        return out


class Distances(nn.Module):
    """SchNet's interaction blocks on points ``(B, n, 3)``; ``(B, n, 32)``."""

    def __init__(self) -> None:
        super().__init__()
        parts = _layers("torch_geometric.nn.models.schnet")
        self.start = nn.Parameter(torch.randn(_WIDTH))
        self.smear = parts.GaussianSmearing(0.0, _REACH, 24)
        self.blocks = nn.ModuleList(
            parts.InteractionBlock(_WIDTH, 24, _WIDTH, _REACH) for _ in range(2)
        )

    def forward(self, points: Tensor) -> Tensor:
        edges = _all_pairs(points)
        flat = points.flatten(0, 1)
        distances = (flat[edges[0]] - flat[edges[1]]).norm(dim=1)
        smeared = self.smear(distances)
        nodes = self.start.expand(len(flat), -1)
        for block in self.blocks:
            nodes = nodes + block(nodes, edges, distances, smeared)
        return nodes.view(*points.shape[:2], -1)


class Differences(nn.Module):
    """PointNet++'s convolutions on points ``(B, n, 3)``; ``(B, n, 32)``."""

    def __init__(self) -> None:
        super().__init__()
        convolution = _layers().PointNetConv
        self.first = convolution(_perceptron(3), add_self_loops=False)
        self.second = convolution(_perceptron(_WIDTH + 3), add_self_loops=False)

    def forward(self, points: Tensor) -> Tensor:
        edges = _all_pairs(points)
        flat = points.flatten(0, 1)
        nodes = self.second(self.first(None, flat, edges).relu(), flat, edges).relu()
        out: Tensor = nodes.view(*points.shape[:2], -1)
        return out


def _perceptron(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH))


def _edges(adjacency: Tensor) -> Tensor:
    """Return the edges ``(2, E)`` of a batch of graphs ``(B, n, n)`` as those of one graph."""
    graph, start, end = adjacency.nonzero(as_tuple=True)
    offset = adjacency.shape[1] * graph
    return torch.stack([offset + start, offset + end])


def _all_pairs(points: Tensor) -> Tensor:
    batch, n, _ = points.shape
    return _edges((1 - torch.eye(n, device=points.device)).expand(batch, -1, -1))
