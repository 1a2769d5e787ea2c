"""From features to a report: ``measure_collapse``, ``measure_batches`` and what they are told.

The pipeline of both passes, every metric asked for, and the limits that theory leaves.
"""
