"""An item that the stamp pushes over 400 KB becomes a dead letter; other items go on, also after a restart."""

import compare
from endpoints import SIZE_LIMIT
from service import total
from waits import until

NAME = "too_large"
NEEDS = (SIZE_LIMIT,)

LIMIT = 400 * 1024


def run(context):
    group = context.group("large")
    service = context.service(group)
    service.start()
    service.wait_ready()
    client = group.source.client()

    def put(key, text):
        client.put_item(TableName=group.source.name, Item={"iata": {"S": key}, "s": {"S": text}})

    put("before", "x")
    put("large", "x" * (LIMIT - len("iata") - len("large") - len("s")))
    letters(service, "refused", 2)
    put("large", "no longer, but behind the dead letter")
    put("after", "x")
    letters(service, "behind", 2)
    expected = {key: item for key, item in compare.read(group.source).items() if key != "large"}
    compare.converged(service, expected, group.peers, 30)
    context.say("the item and the change behind it are dead letters at both peers; the others arrived")

    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"
    service.start()
    service.wait_ready()
    put("large", "still behind it")
    put("last", "x")
    expected["last"] = {"iata": {"S": "last"}, "s": {"S": "x"}}
    letters(service, "behind", 2)
    compare.converged(service, expected, group.peers, 30)
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"
    context.say("a restart knows that the key has dead letters")


def letters(service, reason, number):
    """Waits until the process has kept so many dead letters for a reason."""

    def kept():
        service.check_alive()
        found = total(service.metrics(), "shardwalker_dead_letters_total", reason=reason)
        return found == number, found

    until(f"{number} dead letters: {reason}", kept, 30)
