"""``python -m wals_gpu``: the command line, where the script ``wals-gpu`` is not on the path."""

import sys

from wals_gpu.cli.entry import main

sys.exit(main())
