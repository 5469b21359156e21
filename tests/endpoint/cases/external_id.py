"""Without the external id, or with a wrong one, the service says so and replicates nothing there."""

import compare
from endpoints import EXTERNAL_ID

NAME = "external_id"
NEEDS = (EXTERNAL_ID,)


def run(context):
    group = context.group("external-id")
    client = group.source.client()
    client.put_item(TableName=group.source.name, Item={"iata": {"S": "ZRH"}})
    right = group.roles[0].external_id
    refused(context, group, "none", [right, ""])
    refused(context, group, "wrong", [right, "not-" + group.roles[1].external_id])

    service = context.service(group, worker="right")
    service.start()
    compare.converged(service, compare.read(group.source), group.peers, 60)
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"
    context.say("with the right one it replicates")


def refused(context, group, what, external_ids):
    """The service ends with the exit code for a finding, and its output names the role that it could not assume."""
    service = context.service(group, worker=f"{what}-id", external_ids=external_ids, patience="2s")
    service.start()
    code = service.exit_code(60)
    output = service.output()
    assert code == 1, (
        f"external id {what}: exit code {code}, not 1; the end of {service.log}:\n{service.tail()}"
    )
    role = group.roles[1].arn
    assert role in output, f"external id {what}: the output does not name {role}:\n{service.tail()}"
    assert "sts:AssumeRole" in output, (
        f"external id {what}: the output does not name the call:\n{service.tail()}"
    )
    assert compare.count(group.peers[1]) == 0, "items reached the peer whose role was refused"
    context.say(f"external id {what}: exit code 1, and the output names the role and the call")
