"""Weights & Biases: what our runs hold beside their numbers, and the workspace as code.

``ncmonitor sync`` replays what a run has left on disk.
"""
