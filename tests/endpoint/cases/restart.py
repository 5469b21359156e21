"""The peers' endpoint ends and is started again, while changes come: they arrive when it is back."""

import dataclasses

import compare
from accounts import Role
from endpoints import RESTART
from service import total
from waits import until

NAME = "restart"
NEEDS = (RESTART,)

ITEMS = 300
TIMES = 3


def run(context):
    server, peer_accounts = context.endpoint.restarting(context.directory)
    group = with_profiles(context, context.group("restart", peer_accounts=peer_accounts))
    load = context.load(group, ITEMS)
    service = context.service(group)
    service.start()
    service.wait_ready()
    part = load.total // (TIMES + 1)
    for _ in range(TIMES):
        # Ended in the midst of the writes to the peers.
        load.mix(part, part)
        before = failed(service)
        server.stop()
        load.mix(part // 2, part // 2)

        def meets_it():
            service.check_alive()
            return failed(service) > before, failed(service)

        until("the service finds nobody there", meets_it, 60)
        server.start()
    load.mix(load.total, part)
    compare.converged(service, load.expected, group.peers, 120)
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"
    context.say(f"the peers' endpoint was ended and started again {TIMES} times; they are identical with the source")


def with_profiles(context, group):
    """The group without roles: the server forgets the sessions that it gave."""
    numbers = [peer.account.number for peer in group.peers]
    credentials = context.directory / "credentials"
    keys = "[{0}]\naws_access_key_id = {0}\naws_secret_access_key = test\n"
    credentials.write_text("".join(keys.format(number) for number in numbers))
    environment = group.service_environment | {"AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    roles = [Role(None, None, profile=number) for number in numbers]
    return dataclasses.replace(group, roles=roles, service_environment=environment)


def failed(service):
    """How many calls were made again."""
    return total(service.metrics(), "shardwalker_retries_total")
