"""``python -m potstill`` is ``potstill``; ``torchrun -m potstill`` needs a module."""

import sys

from potstill.cli.main import main

sys.exit(main())
