"""What ends the demo before its time, each as one line for a person; the class's name begins that line."""


class DemoFailed(Exception):
    """The root of them."""


class DaemonFailed(DemoFailed):
    """The daemon did not start, or ended."""


class WorkerFailed(DemoFailed):
    """A worker ended, was refused, or did not answer in time."""


class NotProven(DemoFailed):
    """Everything ran, and what the demo is to show did not come true."""
