"""Lightning callbacks: *when* to measure and *where* to send it."""

from ncmonitor.callbacks.collapse_figures import CollapseFigures
from ncmonitor.callbacks.loggers.alerts import WandbAlerts
from ncmonitor.callbacks.loggers.wandb_runs import wandb_id
from ncmonitor.callbacks.neural_collapse import NeuralCollapse
from ncmonitor.callbacks.symmetry_monitor import SymmetryMonitor
from ncmonitor.callbacks.terminal_phase import TerminalPhase

__all__ = [
    "CollapseFigures", "NeuralCollapse", "SymmetryMonitor", "TerminalPhase", "WandbAlerts",
    "wandb_id",
]  # fmt: skip
