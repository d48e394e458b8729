"""Lets the tests import the simulator as `tests.simulation`, wherever pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
