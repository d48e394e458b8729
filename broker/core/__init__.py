"""The broker as a pure function of what happened: no I/O, no clock, no randomness."""
