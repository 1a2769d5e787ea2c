"""How a trainer's network answers to groups that act on its inputs, measured through a fit.

All of it serves :class:`~ncmonitor.callbacks.SymmetryMonitor`.
"""
