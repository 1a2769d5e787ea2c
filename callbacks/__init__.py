"""Lightning callbacks: *when* to measure and *where* to send it."""

from ncmonitor.callbacks.alerts import WandbAlerts
from ncmonitor.callbacks.collapse_figures import CollapseFigures
from ncmonitor.callbacks.neural_collapse import NeuralCollapse
from ncmonitor.callbacks.symmetry_monitor import SymmetryMonitor
from ncmonitor.callbacks.terminal_phase import TerminalPhase
from ncmonitor.callbacks.wandb_runs import wandb_id

__all__ = [
    "CollapseFigures", "NeuralCollapse", "SymmetryMonitor", "TerminalPhase", "WandbAlerts",
    "wandb_id",
]  # fmt: skip
