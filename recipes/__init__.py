"""Bundled experiments: networks, data, and YAML files that train them to collapse.

``ncmonitor recipes`` lists them, ``ncmonitor fit NAME`` runs one. Nothing is imported here, so that
listing the recipes needs no torch:

- :mod:`ncmonitor.recipes.bundled`: the YAML files in ``configs/`` and what each one claims
- :mod:`ncmonitor.recipes.module`: ``ImageClassifier``, the LightningModule of every recipe
- :mod:`ncmonitor.recipes.networks`: the networks, and :mod:`ncmonitor.recipes.losses` their losses
- :mod:`ncmonitor.recipes.data`: the data modules
- :mod:`ncmonitor.recipes.free_features`: features without a network, whose optimum is known
- :mod:`ncmonitor.recipes.zoo`: ``symmetry_zoo``, which is many small fits
- :mod:`ncmonitor.recipes.fit`: the command, on LightningCLI
"""
