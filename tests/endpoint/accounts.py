"""Accounts, tables and permissions: what a case stands on.

An endpoint has three accounts: the source account, where the service runs and keeps its state table, and two
peer accounts, which it reaches by AssumeRole. A case asks for a `Group`, fresh tables and permissions of its
own, so cases don't see each other. Set-up and the "application" use the accounts' own administrators; the
service only ever gets the credentials and permissions in `Group`, which are the least that it needs.
"""

import dataclasses
import json
import secrets

import boto3
from botocore.config import Config

from waits import until

KEY = "iata"

STREAM_READS = ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]
PEER_WRITES = [
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:PutItem",
    "dynamodb:UpdateItem",
    "dynamodb:DeleteItem",
]
STATE_ACCESS = PEER_WRITES + [
    "dynamodb:BatchGetItem",
    "dynamodb:CreateTable",
    "dynamodb:DescribeTimeToLive",
    "dynamodb:Query",
    "dynamodb:UpdateTimeToLive",
]


@dataclasses.dataclass(frozen=True)
class Account:
    """An account as its administrator sees it."""

    number: str
    region: str
    endpoint: str | None
    session: boto3.Session

    def client(self, service):
        """A client of `service`; retries are boto3's own."""
        return self.session.client(
            service,
            region_name=self.region,
            endpoint_url=self.endpoint,
            config=Config(retries={"mode": "standard", "total_max_attempts": 8}, max_pool_connections=4),
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """A member table."""

    account: Account
    name: str

    @property
    def arn(self):
        return f"arn:aws:dynamodb:{self.account.region}:{self.account.number}:table/{self.name}"

    def client(self):
        return self.account.client("dynamodb")


@dataclasses.dataclass(frozen=True)
class Role:
    """What the service assumes to reach a peer, or the profile that it uses instead."""

    arn: str | None
    external_id: str | None
    profile: str | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """A source, its peers, and what the service may use to replicate from the one to the others; a mesh has changes
    at every table, and each goes to all others."""

    name: str
    source: Table
    peers: list
    roles: list  # of the peers, in their order
    state_table: str
    service_environment: dict  # credentials for the service's process
    mesh: bool = False

    @property
    def members(self):
        return [self.source, *self.peers]


def session(access_key, secret_key="test", token=None):
    """A session of fixed credentials."""
    return boto3.Session(access_key, secret_key, token)


def create_table(table, stream):
    """Creates a member table, on demand, and waits until it is active."""
    client = table.client()
    both_images = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    client.create_table(
        TableName=table.name,
        KeySchema=[{"AttributeName": KEY, "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": KEY, "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification=both_images if stream else {"StreamEnabled": False},
    )

    def active():
        status = client.describe_table(TableName=table.name)["Table"]["TableStatus"]
        return status == "ACTIVE", status

    until(f"table {table.name} is active", active, 120)


def open_shards(table):
    """How many shards of the table's stream take records."""
    stream = table.client().describe_table(TableName=table.name)["Table"]["LatestStreamArn"]
    shards = table.account.client("dynamodbstreams").describe_stream(StreamArn=stream)["StreamDescription"]["Shards"]
    return sum("EndingSequenceNumber" not in shard["SequenceNumberRange"] for shard in shards)


def policy(*statements):
    """A policy document of (actions, resources) pairs, all of them Allow."""
    allowed = [
        {"Effect": "Allow", "Action": actions, "Resource": resources} for actions, resources in statements
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": allowed})


def peer_role(peer, name, service_user_arn, actions=PEER_WRITES, stream_resource=None):
    """Creates the role of a peer account that the service assumes, with an external id in its trust policy. It may
    read the peer's stream, too, when that is given."""
    external_id = secrets.token_hex(16)
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": service_user_arn},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
    }
    iam = peer.account.client("iam")
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]
    allowed = [(actions, peer.arn)] + ([(STREAM_READS, stream_resource)] if stream_resource else [])
    iam.put_role_policy(RoleName=name, PolicyName="replicate", PolicyDocument=policy(*allowed))
    return Role(role["Arn"], external_id)


def service_user(source, name, state_table, role_arns, stream_resource, source_actions):
    """Creates the service's user in the source account; returns its ARN and the environment with its key."""
    account = source.account
    iam = account.client("iam")
    user = iam.create_user(UserName=name)["User"]
    state = f"arn:aws:dynamodb:{account.region}:{account.number}:table/{state_table}"
    document = policy(
        (source_actions, source.arn),
        (STREAM_READS, stream_resource),
        (STATE_ACCESS, state),
        (["sts:AssumeRole"], role_arns),
    )
    iam.put_user_policy(UserName=name, PolicyName="replicate", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    environment = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return user["Arn"], environment
