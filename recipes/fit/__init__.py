"""``ncmonitor fit``: options, the run's folder, ``--resume``, ``--seeds`` and ``ways``.

LightningCLI does the parsing and training; mistakes become one line.
"""
