"""The service under test: the real binary in a process of its own, with a config file that the suite writes."""

import os
import signal
import sys
import urllib.error
import urllib.request

import processes
from waits import until

ROUTE = "airports"
PEERS = ("peer-1", "peer-2")
# Longer than any request, short enough that a restart after a kill does not wait half a minute for the lease.
LEASE = "6s"
REQUEST_TIMEOUT = "2s"
GRACE = 20


class Died(AssertionError):
    """The service ended by itself."""


class Service:
    """One worker: its config, its process (again and again), its log and its admin address."""

    def __init__(
        self, binary, group, directory, worker="worker", verbose=False, external_ids=None, patience="30s"
    ):
        self._binary = binary
        self._verbose = verbose
        self._starts = 0
        self._directory = directory
        self._worker = worker
        self._process = None
        self._port = processes.free_port()
        self.log = None
        self._environment = {"PATH": os.environ["PATH"], **_isolated(directory), **group.service_environment}
        self._environment["AWS_REGION"] = group.source.account.region
        self._config = directory / f"{worker}.toml"
        ids = external_ids or [role.external_id for role in group.roles]
        self._config.write_text(config(group, self._port, worker, ids, patience))

    def start(self):
        """Starts the process; its log is a new file for every start."""
        self._starts += 1
        self.log = self._directory / f"{self._worker}-{self._starts}.log"
        command = [self._binary, "run", "-c", self._config, "--create-state-table"]
        with open(self.log, "wb") as log:
            self._process = processes.start(command, log, self._environment)

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
        return self.exit_code(GRACE + 5)

    def end(self):
        """Ends the process if it still runs, and shows its log when asked to."""
        if self._process is not None:
            processes.end(self._process)
            if self._verbose:
                print(self.output(), file=sys.stderr)

    def get(self, path):
        """GET of the admin address: (status, body); (None, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()
        except OSError as error:
            return None, str(error)

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


def config(group, port, worker, external_ids, patience):
    """The text of the config file."""
    region, endpoint = group.source.account.region, group.source.account.endpoint
    lines = [f'grace = "{GRACE}s"', f'access_patience = "{patience}"', ""]
    lines += ["[state]", f'table = "{group.state_table}"', f'region = "{region}"', *_endpoint(endpoint)]
    lines += _member("source", group.source)
    for name, peer, role, external_id in zip(PEERS, group.peers, group.roles, external_ids):
        lines += _member(name, peer)
        lines += ["[member.assume_role]", f'role = "{role.arn}"']
        if external_id:
            lines.append(f'external_id = "{external_id}"')
    to = ", ".join(f'"{name}"' for name in PEERS)
    lines += ["", "[[route]]", f'name = "{ROUTE}"', 'from = "source"', f"to = [{to}]"]
    lines += ["", "[write]", f'request_timeout = "{REQUEST_TIMEOUT}"']
    lines += ["", "[lease]", f'duration = "{LEASE}"', f'worker = "{worker}"']
    lines += ["", "[admin]", f'listen = "127.0.0.1:{port}"']
    return "\n".join(lines) + "\n"


def _member(name, table):
    return [
        "",
        "[[member]]",
        f'name = "{name}"',
        f'table = "{table.arn}"',
        *_endpoint(table.account.endpoint),
    ]


def _endpoint(url):
    return [f'endpoint = "{url}"'] if url else []
