"""``python -m agentlace`` is the ``agentlace`` command."""

import sys

from agentlace.cli import main

sys.exit(main())
