"""Lets the tests import their desk as `tests.unit.core.desk`, wherever pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
