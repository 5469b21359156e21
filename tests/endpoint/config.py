"""The service's config file: one route from the source of a group to its two peers, which are reached by roles; or an
active-active group of all three, for a mesh; or a route with a way back to the first peer, for a migration."""

import dataclasses

PEERS = ("peer-1", "peer-2")
GRACE = 20
STALL_AFTER = 10  # the least that the service takes


@dataclasses.dataclass(frozen=True)
class Pace:
    """Settings that depend on how fast an endpoint is.

    A lease is at least three requests long, and short enough that a restart after `kill -9` need not wait for it
    half a minute.
    """

    lease: str = "6s"
    request_timeout: str = "2s"
    in_flight: int = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """What differs between the workers of the cases."""

    pace: Pace
    worker: str = "worker"
    external_ids: tuple | None = None  # instead of the right ones; an empty one is left out
    patience: str = "30s"
    migration: bool = False  # one route to the first peer, with a way back
    endpoint: str | None = None  # instead of the accounts' own, which stay right for everybody else


def text(group, port, settings):
    """The text of the file, with the admin address on `port` of the loopback interface."""
    region, endpoint = group.source.account.region, settings.endpoint or group.source.account.endpoint
    lines = [f'grace = "{GRACE}s"', f'access_patience = "{settings.patience}"', ""]
    lines += ["[state]", f'table = "{group.state_table}"', f'region = "{region}"', *_endpoint(endpoint)]
    lines += _member("source", group.source, endpoint, 1)
    external_ids = settings.external_ids or [role.external_id for role in group.roles]
    for number, peer in enumerate(group.peers):
        name, role, external_id = PEERS[number], group.roles[number], external_ids[number]
        lines += _member(name, peer, settings.endpoint or peer.account.endpoint, number + 2)
        if role.profile:
            lines.append(f'profile = "{role.profile}"')
            continue
        lines += ["[member.assume_role]", f'role = "{role.arn}"']
        if external_id:
            lines.append(f'external_id = "{external_id}"')
    to = ", ".join(f'"{name}"' for name in PEERS)
    if settings.migration:
        lines += ["", "[[route]]", 'name = "airports"', 'from = "source"', f'to = ["{PEERS[0]}"]']
        lines += ["reversible = true", 'start = "latest"']
    elif group.mesh:
        lines += ["", "[[group]]", 'name = "airports"', f'members = ["source", {to}]', 'conflicts = "full"']
    else:
        lines += ["", "[[route]]", 'name = "airports"', 'from = "source"', f"to = [{to}]"]
    pace = settings.pace
    lines += ["", "[write]", f'request_timeout = "{pace.request_timeout}"', f"in_flight = {pace.in_flight}"]
    lines += ["", "[lease]", f'duration = "{pace.lease}"', f'worker = "{settings.worker}"']
    lines += ["", "[admin]", f'listen = "127.0.0.1:{port}"', f'stall_after = "{STALL_AFTER}s"']
    return "\n".join(lines) + "\n"


def _member(name, table, endpoint, number):
    return [
        "",
        "[[member]]",
        f'name = "{name}"',
        f'table = "{table.arn}"',
        f"number = {number}",
        *_endpoint(endpoint),
    ]


def _endpoint(url):
    return [f'endpoint = "{url}"'] if url else []
