"""The endpoint stops answering for a while: /healthz says so, and the service goes on by itself afterwards."""

import time

import compare
from config import STALL_AFTER
from endpoints import OUTAGE
from waits import until

NAME = "outage"
NEEDS = (OUTAGE,)

ITEMS = 200
OK, UNAVAILABLE = 200, 503


def run(context):
    group = context.group("outage")
    load = context.load(group, ITEMS)
    service = context.service(group)
    service.start()
    service.wait_ready()
    load.mix(load.total // 2, load.total // 4)

    begun = time.monotonic()
    context.endpoint.server.pause()
    try:
        health(service, UNAVAILABLE, STALL_AFTER + 30)
        context.say(f"/healthz failed after {time.monotonic() - begun:.1f} s without answers")
    finally:
        context.endpoint.server.resume()
    health(service, OK, 60)
    load.mix(load.total, load.total // 4)
    compare.converged(service, load.expected, group.peers, 120)
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"
    context.say("the endpoint came back; the peers are identical with the source")


def health(service, status, limit):
    """Waits until /healthz answers with this status."""

    def answers():
        service.check_alive()
        answer = service.get("/healthz")
        return answer[0] == status, answer

    until(f"/healthz answers {status}", answers, limit)
