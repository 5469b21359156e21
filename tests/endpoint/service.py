"""The service under test: the real binary in a process of its own."""

import os
import signal
import subprocess
import urllib.error
import urllib.request

import config
import processes
from waits import until


class Died(AssertionError):
    """The service ended by itself."""


class Service:
    """One worker: its config, its process (again and again), its log and its admin address."""

    def __init__(self, binary, group, directory, settings):
        self._binary = binary
        self._directory = directory
        self._worker = settings.worker
        self._process = None
        self._port = processes.free_port()
        self.logs = []
        self._environment = {"PATH": os.environ["PATH"], **_isolated(directory), **group.service_environment}
        self._environment["AWS_REGION"] = group.source.account.region
        self._config = directory / f"{self._worker}.toml"
        self._config.write_text(config.text(group, self._port, settings))

    def start(self):
        """Starts the process; its log is a new file for every start."""
        self.logs.append(self._directory / f"{self._worker}-{len(self.logs) + 1}.log")
        command = [self._binary, "run", "-c", self._config, "--create-state-table"]
        with open(self.log, "wb") as log:
            self._process = processes.start(command, log, self._environment)

    @property
    def log(self):
        """The log of the last start."""
        return self.logs[-1]

    def output(self):
        """What the process has printed since its last start."""
        return self.log.read_text(errors="replace")

    def exit_code(self, limit):
        """Waits until the process has ended by itself, and returns its exit code."""

        def ended():
            return self._process.poll() is not None, self._process.poll()

        until(f"{self._worker} ends", ended, limit)
        return self._process.returncode

    def check_alive(self):
        """Raises `Died` with the end of the log when the process has ended."""
        if self._process.poll() is not None:
            raise Died(
                f"{self._worker} ended with {self._process.returncode}; the end of {self.log}:\n{self.tail()}"
            )

    def tail(self, lines=25):
        """The last lines of the log."""
        return "\n".join(self.output().splitlines()[-lines:])

    def kill(self):
        """`kill -9`."""
        self.check_alive()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pause(self):
        """SIGSTOP: the process stands still as on a machine that is swapped out."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self):
        """SIGTERM; returns the exit code, which must come within the grace period."""
        self.check_alive()
        self._process.send_signal(signal.SIGTERM)
        return self.exit_code(config.GRACE + 5)

    def end(self):
        """Ends the process if it still runs."""
        if self._process is not None:
            processes.end(self._process)

    def get(self, path):
        """GET of the admin address: (status, body); (None, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()
        except OSError as error:
            return None, str(error)

    def command(self, name, *arguments, limit=600):
        """Runs another command on the same config; returns its exit code and what it printed."""
        done = subprocess.run(
            [self._binary, name, "-c", self._config, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")

    def wait_ready(self, limit=60):
        """Waits until /readyz says 200."""

        def ready():
            self.check_alive()
            status, body = self.get("/readyz")
            return status == 200, (status, body)

        until(f"{self._worker} is ready", ready, limit)

    def metrics(self):
        """The samples of /metrics, {name{labels}: value}, as they were just now."""
        status, body = self.get("/metrics")
        assert status == 200, f"/metrics answered {status}: {body}"
        lines = [line for line in body.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def total(samples, metric, **labels):
    """The sum of a metric's samples that have these labels; 0 when there is none (a label not seen yet)."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for sample, value in samples.items()
        if sample.split("{", 1)[0] == metric and all(label in sample for label in wanted)
    )


def _isolated(directory):
    """Nothing of the machine's own AWS configuration reaches the service."""
    nothing = os.devnull
    return {
        "HOME": str(directory),
        "AWS_CONFIG_FILE": nothing,
        "AWS_SHARED_CREDENTIALS_FILE": nothing,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
