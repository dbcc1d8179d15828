"""Every case imports this first: puts the folder above this one on the path, where `lib` is.

Workers need no such thing: `lib.common.run_worker` starts them with that folder in PYTHONPATH.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
