"""``python -m ncmonitor``: the command line."""

import sys

from ncmonitor.cli import main

sys.argv[0] = "ncmonitor"  # the name under which a run records its command
sys.exit(main())
