"""Where numbers go in Lightning: all loggers, TensorBoard's layout, W&B's runs and alerts.

The history on disk is written elsewhere, in :mod:`ncmonitor.callbacks.run_log`.
"""
