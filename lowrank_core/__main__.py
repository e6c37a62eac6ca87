"""Run the command line, as ``lowrank`` does: ``python -m lowrank_core``."""

import sys

from lowrank_core.cli.app import main

sys.exit(main())
