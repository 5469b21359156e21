"""The endpoints: how each makes accounts and groups, and what it can't do.

`leaves_out` names what an endpoint does not do, with the reason; a case that needs it is left out and the
suite says so. Every fault that is worked around is written down in docs/endpoints.md.
"""

import contextlib
import json
import os
import secrets

import boto3

import accounts
import servers
import shim
from accounts import Account, Group, Role, Table
from config import Pace

NUMBERS = ("111111111111", "222222222222", "333333333333")
REGION = "us-east-1"

# What cases may need of an endpoint.
EXTERNAL_ID = "external ids enforced"
PERMISSIONS = "permissions enforced"
SIZE_LIMIT = "items of exactly 400 KB"
OUTAGE = "a server that can be stopped"
RESTART = "a server that keeps its tables when it is started again"
FROM_A_TIME = "streams that are read from a time on"


class Endpoint:
    """Three accounts, and groups of tables and permissions in them."""

    name = ""
    leaves_out = {}
    # Items of the data that this endpoint takes in good time; None: all.
    items = None
    pace = Pace()
    # The server, if the suite has started it.
    server = None

    def __init__(self, found):
        self.source_account, *self.peer_accounts = found

    def group(self, case, peer_actions=accounts.PEER_WRITES, mesh=False, peer_accounts=None):
        """Fresh tables and permissions for a case; in a mesh all tables have streams, and are written to. The peers'
        accounts may be others than the endpoint's own."""
        name = f"sw-suite-{case}-{secrets.token_hex(3)}"
        source = Table(self.source_account, name)
        peers = [Table(account, name) for account in peer_accounts or self.peer_accounts]
        accounts.create_table(source, stream=True)
        for peer in peers:
            accounts.create_table(peer, stream=mesh)
        state_table = f"{name}-state"
        environment, roles = self._permissions(name, source, peers, state_table, peer_actions, mesh)
        return Group(name, source, peers, roles, state_table, environment, mesh)

    def _permissions(self, name, source, peers, state_table, peer_actions, mesh):
        role_arns = [f"arn:aws:iam::{peer.account.number}:role/{name}" for peer in peers]
        user_arn, environment = accounts.service_user(
            source,
            name,
            state_table,
            role_arns,
            self.stream_resource(source),
            peer_actions if mesh else ["dynamodb:DescribeTable"],
        )
        streams = [self.stream_resource(peer) if mesh else None for peer in peers]
        roles = [
            accounts.peer_role(peer, name, user_arn, peer_actions, stream)
            for peer, stream in zip(peers, streams)
        ]
        return environment, roles

    def stream_resource(self, source):
        """The resource of the service's permission to read the stream."""
        return f"{source.arn}/stream/*"

    def left_out(self, needs):
        """Why a case with these needs is left out, or None."""
        if OUTAGE in needs and not self.server:
            return "the suite did not start this endpoint, so it does not stop it"
        if RESTART in needs and not isinstance(self, Ministack):
            return f"{self.name} can't be started again with the tables that it had"
        return next((self.leaves_out[need] for need in needs if need in self.leaves_out), None)

    def _serve(self, start, directory):
        """The URL of the endpoint that runs already, or of a server that is started for the suite."""
        url = os.environ.get("SHARDWALKER_ENDPOINT_URL")
        if not url:
            self.server = start(directory)
            url = self.server.url
        return url

    def disturb(self, group):
        """Splits the shards of the group's streams, where an endpoint can be told to."""

    def discard(self, group):
        """Removes what `group` left behind; nothing to do for an endpoint that ends with the suite."""


class Sandbox(Endpoint):
    """The embedded sandbox as a process of its own, over TCP: the same cases hold for it as for the others."""

    name = "sandbox"

    def __init__(self, directory, binary):
        self.server = servers.sandbox(directory, binary)
        url = self.server.url
        found = []
        everything = json.loads(accounts.policy(("*", "*")))
        for number in NUMBERS:
            key = self.server.post("/_sandbox/users", account=number, name="suite", policy=everything)
            session = accounts.session(key["access_key_id"], key["secret_access_key"])
            found.append(Account(number, REGION, url, session))
        super().__init__(found)

    def disturb(self, group):
        """Splits all open shards of the source's stream, and of all members' in a mesh."""
        for table in group.members if group.mesh else [group.source]:
            self.server.post("/_sandbox/split", table=table.arn)


class Ministack(Endpoint):
    """ministack: signatures, identity policies and external ids are enforced."""

    name = "ministack"

    def __init__(self, directory, _binary):
        url = self._serve(servers.ministack, directory)
        super().__init__([Account(number, REGION, url, accounts.session(number)) for number in NUMBERS])

    def restarting(self, directory):
        """A server of its own that can be started again, and the peers' accounts on it. It keeps tables and no
        streams, and checks nobody's access: the users are those of the first one."""
        server = servers.restarting_ministack(directory)
        found = [Account(number, REGION, server.url, accounts.session(number)) for number in NUMBERS[1:]]
        return server, found

    def stream_resource(self, source):
        # It takes the resource of every stream call for `*`, which no narrower statement matches.
        return "*"


class Moto(Endpoint):
    """moto's server: accounts by AssumeRole, nothing enforced."""

    name = "moto"
    items = 200
    # One thread a connection, and a GetRecords of 1000 records takes it seconds.
    pace = Pace(lease="15s", request_timeout="5s", in_flight=8)
    leaves_out = {
        EXTERNAL_ID: "moto grants every AssumeRole, whatever the role's trust policy says",
        PERMISSIONS: "moto's server does not evaluate policies",
        SIZE_LIMIT: "moto refuses an item of exactly 400 KB: it counts the JSON around it, too",
        FROM_A_TIME: "moto grants an iterator of the type AT_TIMESTAMP, and then answers its reads with HTTP 500",
    }

    def __init__(self, directory, _binary):
        url = self._serve(servers.moto, directory)
        sts = accounts.session("test").client("sts", region_name=REGION, endpoint_url=url)
        found = []
        for number in NUMBERS:
            role = f"arn:aws:iam::{number}:role/administrator"
            got = sts.assume_role(RoleArn=role, RoleSessionName="endpoint-suite")["Credentials"]
            session = accounts.session(got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"])
            found.append(Account(number, REGION, url, session))
        super().__init__(found)


class DynamoDbLocal(Endpoint):
    """A DynamoDB Local that the user runs, not with -sharedDb: the access key chooses the database."""

    name = "dynamodb-local"
    leaves_out = {
        EXTERNAL_ID: "DynamoDB Local has no STS: the suite's own shim answers AssumeRole",
        PERMISSIONS: "DynamoDB Local has no policies",
    }

    def __init__(self, _directory, _binary):
        url = shim.start(_required("SHARDWALKER_ENDPOINT_URL"))
        super().__init__([Account(number, REGION, url, accounts.session(number)) for number in NUMBERS])

    def _permissions(self, name, source, peers, _state_table, _peer_actions, _mesh):
        roles = [Role(f"arn:aws:iam::{peer.account.number}:role/{name}", None) for peer in peers]
        return {"AWS_ACCESS_KEY_ID": source.account.number, "AWS_SECRET_ACCESS_KEY": "test"}, roles

    def discard(self, group):
        _delete_tables(group)


class Aws(Endpoint):
    """Real accounts, or anything else that profiles of the AWS config files reach.

    The suite creates tables named `sw-suite-*` and deletes them; the roles and the service's permissions are
    the user's.
    """

    name = "aws"

    def __init__(self, _directory, _binary):
        region = os.environ.get("SHARDWALKER_REGION", REGION)
        url = os.environ.get("SHARDWALKER_ENDPOINT_URL")
        found = []
        for party in ("SOURCE", "PEER_1", "PEER_2"):
            session = boto3.Session(profile_name=_required(f"SHARDWALKER_PROFILE_{party}"))
            number = session.client("sts", region_name=region, endpoint_url=url).get_caller_identity()[
                "Account"
            ]
            found.append(Account(number, region, url, session))
        super().__init__(found)
        if os.environ.get("SHARDWALKER_EXTERNAL_IDS") == "none":
            self.leaves_out = {EXTERNAL_ID: "SHARDWALKER_EXTERNAL_IDS=none says that the roles ask for none"}
        else:
            self.leaves_out = {}
        self.leaves_out[PERMISSIONS] = (
            "the suite does not change the permissions of accounts that it was given"
        )

    def _permissions(self, _name, _source, _peers, _state_table, _peer_actions, _mesh):
        roles = [
            Role(_required(f"SHARDWALKER_ROLE_PEER_{n}"), os.environ.get(f"SHARDWALKER_EXTERNAL_ID_PEER_{n}"))
            for n in (1, 2)
        ]
        environment = {"AWS_PROFILE": _required("SHARDWALKER_PROFILE_SERVICE")}
        for name in ("HOME", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            if name in os.environ:
                environment[name] = os.environ[name]
        return environment, roles

    def discard(self, group):
        _delete_tables(group)


def _delete_tables(group):
    for table in (group.source, *group.peers, Table(group.source.account, group.state_table)):
        client = table.client()
        with contextlib.suppress(client.exceptions.ResourceNotFoundException):
            client.delete_table(TableName=table.name)


def _required(name):
    value = os.environ.get(name)
    if not value:
        raise SystemExit(
            f"endpoint suite: {name} is not set; docs/endpoints.md tells what each endpoint needs"
        )
    return value


KINDS = {kind.name: kind for kind in (Sandbox, Ministack, Moto, DynamoDbLocal, Aws)}
