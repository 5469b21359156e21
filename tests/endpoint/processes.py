"""Every process that the suite starts, so that none outlives it."""

import atexit
import os
import signal
import socket
import subprocess

_started = []


def start(command, log, environment):
    """Starts a command without stdin in a process group of its own; both outputs go to the open file `log`."""
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    _started.append(process)
    return process


def end(process):
    """Kills a process and its group, and waits for it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@atexit.register
def _end_all():
    for process in _started:
        end(process)


def free_port():
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
