"""The small set-ups and modules of the remedies' tests, for the trials."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "remedies"))
