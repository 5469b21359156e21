"""A peer's role without PutItem: the service names the member and the permission, and loses nothing."""

import compare
from accounts import PEER_WRITES
from endpoints import PERMISSIONS
from waits import until

NAME = "missing_permission"
NEEDS = (PERMISSIONS,)


def run(context):
    group = context.group(
        "permission", peer_actions=[action for action in PEER_WRITES if action != "dynamodb:PutItem"]
    )
    service = context.service(group, patience="2s")
    client = group.source.client()
    client.put_item(TableName=group.source.name, Item={"iata": {"S": "ZRH"}})
    service.start()

    def named():
        output = service.output()
        return "dynamodb:PutItem" in output and group.peers[0].arn in output, output[-500:]

    until("the output names dynamodb:PutItem and the table", named, 60)
    assert all(compare.count(peer) == 0 for peer in group.peers), (
        "items arrived without permission to put them"
    )
    context.say("the output names the action and the table")
