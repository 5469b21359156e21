"""Endpoints that the suite starts itself: on loopback only, on a free port, waited for with a limit."""

import os
import urllib.error
import urllib.request

import processes
import venvs
from waits import until

START_LIMIT = 60


def ministack(directory):
    """Starts ministack with its access checks on; returns its URL."""
    port = processes.free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(directory),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",  # it would listen on all interfaces
        "AUTH": "true",
        "SERVICES": "dynamodb,dynamodbstreams,iam,sts",
        "LOG_LEVEL": "WARNING",
    }
    program = venvs.ensure("ministack").with_name("ministack")
    return _started("ministack", [program], environment, directory, port, "/_ministack/ready")


def moto(directory):
    """Starts moto's server; returns its URL."""
    port = processes.free_port()
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(directory)}
    program = venvs.ensure("moto").with_name("moto_server")
    command = [program, "-H", "127.0.0.1", "-p", port]
    return _started("moto", command, environment, directory, port, "/moto-api/")


def _started(name, command, environment, directory, port, ready_path):
    url = f"http://127.0.0.1:{port}"
    with open(directory / f"{name}.log", "wb") as log:
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
    return url
