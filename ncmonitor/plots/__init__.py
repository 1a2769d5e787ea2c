"""Pictures: a table or a snapshot and an ``ax`` in, the ``ax`` out.

Nothing here knows a trainer, a run folder or a screen, and nothing needs torch. Figures are made
without pyplot, so drawing one neither picks a backend nor touches the settings of the caller.

Of a history (:func:`ncmonitor.monitor.history.read_history`): :func:`curves`, :func:`layers`,
:func:`phase`, :func:`irrep_budget`. Of a snapshot
(:func:`ncmonitor.monitor.snapshots.snapshot.take_snapshot`): :func:`gram`, :func:`simplex`,
:func:`spectrum`; of several, :func:`animate`. Of a table of symmetry
(:func:`ncmonitor.monitor.symmetry_table.read_symmetry`): :func:`collapse_and_orbits`,
:func:`group_curves`.
"""

from __future__ import annotations

from ncmonitor.plots._animate import animate as animate
from ncmonitor.plots._animate import animation_html as animation_html
from ncmonitor.plots._curves import PANELS as PANELS
from ncmonitor.plots._curves import curves as curves
from ncmonitor.plots._curves import overview as overview
from ncmonitor.plots._curves import panel as panel
from ncmonitor.plots._curves import panel_labels as panel_labels
from ncmonitor.plots._curves import shade_tpt as shade_tpt
from ncmonitor.plots._gram import gram as gram
from ncmonitor.plots._gram import grams as grams
from ncmonitor.plots._irreps import irrep_budget as irrep_budget
from ncmonitor.plots._layers import layers as layers
from ncmonitor.plots._phase import phase as phase
from ncmonitor.plots._simplex import simplex as simplex
from ncmonitor.plots._spectrum import spectrum as spectrum
from ncmonitor.plots._symmetry import collapse_and_orbits as collapse_and_orbits
from ncmonitor.plots._symmetry import group_curves as group_curves
