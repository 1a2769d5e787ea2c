"""Snapshots: the geometry of one split at one epoch, small enough to keep for every epoch.

One JSON line each; pictures and pages are drawn from them.
"""
