"""``python -m potstill`` is ``potstill``; ``torchrun -m potstill`` needs a module."""

from potstill.cli.main import leave, main

leave(main())
