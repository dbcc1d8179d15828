"""A process that kills itself at one of its operations on files."""

import signal
import sys

OPERATIONS = ("open", "os.", "shutil.", "fcntl.")


def kill_before_operation(n: int) -> None:
    """From now on, SIGKILL to this process before its operation n, from 0."""
    left = n

    def kill(event, args):
        nonlocal left
        if event.startswith(OPERATIONS):
            left -= 1
            if left < 0:
                signal.raise_signal(signal.SIGKILL)

    sys.addaudithook(kill)
