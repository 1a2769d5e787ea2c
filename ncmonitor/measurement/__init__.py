"""From features to a report: ``measure_collapse``, ``collapse_report`` and what they are told.

The pipeline of both passes, every metric asked for, and the limits that theory leaves.
"""
