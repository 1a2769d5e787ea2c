"""Lightning callbacks: *when* to measure and *where* to send it."""

from ncmonitor.callbacks.neural_collapse import NeuralCollapse

__all__ = ["NeuralCollapse"]
