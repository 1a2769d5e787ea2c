"""The recipe ``symmetry_zoo``: small networks beside what theory says of their symmetries.

- :mod:`ncmonitor.recipes.zoo.symmetry_zoo`: the command, and what it claims
- :mod:`ncmonitor.recipes.zoo.zoo_entries`: which network is held against which groups
- :mod:`ncmonitor.recipes.zoo.zoo_groups`: those of them that are its own
- :mod:`ncmonitor.recipes.zoo.predictions`: exactly 0, nearly 0 or free, and when a number agrees
- :mod:`ncmonitor.recipes.zoo.zoo_data`: what they are trained on
- :mod:`ncmonitor.recipes.zoo.zoo_networks`, :mod:`ncmonitor.recipes.zoo.geometric`: the networks
- :mod:`ncmonitor.recipes.zoo.zoo_measurement`: training and measuring
- :mod:`ncmonitor.recipes.zoo.zoo_table`, :mod:`ncmonitor.recipes.zoo.figure`: what is shown
"""
