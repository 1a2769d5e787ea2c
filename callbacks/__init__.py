"""Lightning callbacks: *when* to measure and *where* to send it."""

from ncmonitor.callbacks.neural_collapse import NeuralCollapse
from ncmonitor.callbacks.terminal_phase import TerminalPhase

__all__ = ["NeuralCollapse", "TerminalPhase"]
