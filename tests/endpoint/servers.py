"""Endpoints that the suite starts itself: on loopback only, on a free port, waited for with a limit."""

import dataclasses
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request

import processes
import venvs
from waits import until

START_LIMIT = 60


@dataclasses.dataclass(frozen=True)
class Server:
    """A server of the suite's own; it ends with the suite."""

    url: str
    process: subprocess.Popen

    def pause(self):
        """SIGSTOP: connections are taken, answers don't come."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        """SIGCONT: what was sent meanwhile is answered late."""
        self.process.send_signal(signal.SIGCONT)


class RestartingServer:
    """A server that can be ended and started again, on the same port and with what it had."""

    def __init__(self, start):
        self._start = start
        self._server = start()
        self.url = self._server.url

    def stop(self):
        """SIGTERM, and waits: it writes down what it has."""
        self._server.process.terminate()
        self._server.process.wait(timeout=60)

    def start(self):
        """Starts it again; waits until it answers."""
        self._server = self._start()


@dataclasses.dataclass(frozen=True)
class SandboxServer(Server):
    """The sandbox: it can be turned over its admin paths."""

    def post(self, path, **body):
        """What an admin path answers to `body`."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def sandbox(directory, binary):
    """Starts the embedded sandbox; returns it."""
    port = processes.free_port()
    environment = {"PATH": os.environ["PATH"]}
    command = [binary, "sandbox", "--listen", f"127.0.0.1:{port}"]
    started = _started("sandbox", command, environment, directory, port, "/_sandbox/health")
    return SandboxServer(started.url, started.process)


def ministack(directory):
    """Starts ministack with its access checks on; returns it."""
    return _ministack("ministack", directory, processes.free_port(), AUTH="true")


def restarting_ministack(directory):
    """Starts ministack without access checks; it keeps its tables while it does not run. Returns it."""
    port, kept = processes.free_port(), str(directory / "kept")
    return RestartingServer(
        lambda: _ministack("restarting", directory, port, AUTH="false", PERSIST_STATE="1", STATE_DIR=kept)
    )


def _ministack(name, directory, port, **settings):
    environment = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(directory),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",  # it would listen on all interfaces
        "SERVICES": "dynamodb,dynamodbstreams,iam,sts",
        "LOG_LEVEL": "WARNING",
        **settings,
    }
    program = venvs.ensure("ministack").with_name("ministack")
    return _started(name, [program], environment, directory, port, "/_ministack/ready")


def moto(directory):
    """Starts moto's server; returns it."""
    port = processes.free_port()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(directory)}
    program = venvs.ensure("moto").with_name("moto_server")
    command = [program, "-H", "127.0.0.1", "-p", port]
    return _started("moto", command, environment, directory, port, "/moto-api/")


def _started(name, command, environment, directory, port, ready_path):
    url = f"http://127.0.0.1:{port}"
    with open(directory / f"{name}.log", "ab") as log:
        process = processes.start(command, log, environment)

    def ready():
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}; see {directory / f'{name}.log'}")
        try:
            with urllib.request.urlopen(url + ready_path, timeout=5) as answer:
                return answer.status == 200, answer.status
        except (urllib.error.URLError, OSError) as error:
            return False, error

    until(f"{name} answers", ready, START_LIMIT)
    return Server(url, process)
