"""Two workers on one config, one of them stopped and resumed, the other killed: nothing is corrupted."""

import time

import compare
from load import Background
from service import total
from waits import until

NAME = "two_workers"
NEEDS = ()

ITEMS = 400


def run(context):
    group = context.group("workers")
    load = context.load(group, ITEMS)
    first, second = context.service(group, worker="first"), context.service(group, worker="second")
    started = time.time()
    first.start()
    first.wait_ready()
    second.start()

    writer = Background(lambda: load.mix(load.total, load.total * 2))
    progress(load, 0.2)
    shards = held(first) + held(second)
    first.pause()
    context.say(f"SIGSTOP of the first worker after {load.changes} changes")
    reached = applied(second)

    def taken_over():
        second.check_alive()
        count, leases = applied(second), held(second)
        return count > reached and leases >= shards, (count, leases)

    until("the second worker takes over", taken_over, 60)
    first.resume()
    writer.join()
    compare.converged(None, load.expected, group.peers, 120)
    context.say("SIGCONT of the first; the peers are identical with the source")
    second.kill()
    load.change(load.total // 4)
    stamped = compare.converged(None, load.expected, group.peers, 120)
    compare.check_stamps(stamped, started)
    context.say("kill -9 of the second; the first goes on alone")
    assert first.terminate() == 0, f"exit code after SIGTERM; see {first.log}"


def held(worker):
    """How many shards a worker holds."""
    return total(worker.metrics(), "shardwalker_leases_held")


def applied(worker):
    """How many changes a worker has applied, at all peers."""
    return total(worker.metrics(), "shardwalker_changes_total", outcome="applied")


def progress(load, part):
    """Waits until the writer has done a part of its inserts."""
    until("the writer is at work", lambda: (load.changes > load.total * part, load.changes), 60)
