"""Three workers: one killed, one stopped past its lease, one cut off and its endpoint back; everything arrives."""

import time

import compare
from load import Background
from service import total
from waits import until

NAME = "three_workers"
NEEDS = ()

ITEMS = 600


def run(context):
    group = context.group("three")
    load = context.load(group, ITEMS)
    proxy = context.proxy()
    first = context.service(group, worker="first")
    second = context.service(group, worker="second")
    third = context.service(group, worker="third", endpoint=proxy.url)
    started = time.time()
    for worker in (first, second, third):
        worker.start()
        worker.wait_ready()

    lease = float(context.endpoint.pace.lease.rstrip("s"))
    writer = Background(lambda: load.mix(load.total, load.total * 3))
    at_work(load, 0.1)
    context.endpoint.disturb(group)
    first.kill()
    second.pause()
    proxy.cut()
    context.say(f"kill -9, SIGSTOP, and a cut after {load.changes} changes: nobody works")
    time.sleep(lease + 1)  # what is tested is that the lease runs out
    proxy.restore()
    begun, reached = time.monotonic(), applied(third)

    def goes_on():
        third.check_alive()
        count = applied(third)
        return count > reached, count

    until("the worker that was cut off goes on", goes_on, 60)
    context.say(f"the worker that was cut off goes on {time.monotonic() - begun:.1f} s after it can")
    second.resume()
    first.start()
    writer.join()
    compare.converged(None, load.expected, group.peers, 180)
    third.kill()
    load.change(load.total // 4)
    held = compare.converged(None, load.expected, group.peers, 180)
    compare.check_stamps(held, started)
    context.say("after another kill -9 the peers are identical with the source")
    for worker in (first, second):
        assert worker.terminate() == 0, f"exit code after SIGTERM; see {worker.log}"


def applied(worker):
    """How many changes a worker has applied, at all peers."""
    return total(worker.metrics(), "shardwalker_changes_total", outcome="applied")


def at_work(load, part):
    """Waits until the writer has done a part of its inserts."""
    until("the writer is at work", lambda: (load.changes > load.total * part, load.changes), 60)
