"""The pictures of a fit: when they are due, what they are drawn from, and where they go.

All of them serve :class:`~ncmonitor.callbacks.CollapseFigures`.
"""
