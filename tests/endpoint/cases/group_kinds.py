"""Every kind of write that applications make, one after the other, at each of three members: it arrives at the others."""

import compare
from waits import until

NAME = "group_kinds"
NEEDS = ()

KEY = "iata"


def run(context):
    group = context.group("kinds", mesh=True)
    worker = context.service(group)
    worker.start()
    worker.wait_ready()
    kinds = [put, put_over, update, update_back, put_back_changed, put_back_whole, transact, batch, delete]
    members = group.members
    for number in range(len(members)):
        for kind in kinds:
            # What another member created has our attribute.
            at = number if kind is put else (number + 1) % len(members)
            expected = kind(Application(members[at], f"m{number}"))
            until(f"{kind.__name__} at member {at} arrives", lambda: arrived(members, expected), 60)
    context.say(f"{len(kinds)} kinds of writes at each of {len(members)} members arrived at all others")
    assert worker.terminate() == 0, f"exit code after SIGTERM; see {worker.log}"


class Application:
    """Of one member; its keys are its own."""

    def __init__(self, member, prefix):
        self._table, self._client, self._prefix = member.name, member.client(), prefix

    def key(self, name):
        return {KEY: {"S": f"{self._prefix}-{name}"}}

    def item(self, name, value):
        return {**self.key(name), "value": {"S": value}}

    def call(self, operation, **arguments):
        return getattr(self._client, operation)(TableName=self._table, **arguments)

    def put(self, item):
        self.call("put_item", Item=item)

    def get(self, name):
        return self.call("get_item", Key=self.key(name), ConsistentRead=True)["Item"]

    def set(self, name, value):
        self.call("update_item", **self.set_arguments(name, value))

    def set_arguments(self, name, value):
        return {
            "Key": self.key(name),
            "UpdateExpression": "SET #v = :v",
            "ExpressionAttributeNames": {"#v": "value"},
            "ExpressionAttributeValues": {":v": {"S": value}},
        }

    def transact(self, *writes):
        """Each a kind and its arguments."""
        items = [{kind: {"TableName": self._table, **arguments}} for kind, arguments in writes]
        self._client.transact_write_items(TransactItems=items)

    def batch(self, *writes):
        self._client.batch_write_item(RequestItems={self._table: list(writes)})

    def expect(self, **values):
        """What the members must hold of these names; None for no item."""
        return {f"{self._prefix}-{name}": value for name, value in values.items()}


def put(app):
    for name in ("a", "b", "c"):
        app.put(app.item(name, "put"))
    return app.expect(a="put", b="put", c="put")


def put_over(app):
    """Drops our attribute."""
    app.put(app.item("a", "over"))
    return app.expect(a="over")


def update(app):
    """Keeps our attribute, which does not match any more."""
    app.set("b", "update")
    return app.expect(b="update")


def update_back(app):
    """To the content that our attribute was made for."""
    app.set("b", "put")
    return app.expect(b="put")


def put_back_changed(app):
    """Read, modify, write: with our attribute in it."""
    app.put({**app.get("a"), "value": {"S": "changed"}})
    return app.expect(a="changed")


def put_back_whole(app):
    """What was read before somebody changed it."""
    read = app.get("c")
    app.set("c", "between")
    app.put(read)
    return app.expect(c="put")


def transact(app):
    app.transact(
        ("Put", {"Item": app.item("t", "transaction")}),
        ("Update", app.set_arguments("a", "transaction")),
        ("Delete", {"Key": app.key("c")}),
    )
    return app.expect(t="transaction", a="transaction", c=None)


def batch(app):
    app.batch({"PutRequest": {"Item": app.item("n", "batch")}}, {"DeleteRequest": {"Key": app.key("b")}})
    return app.expect(n="batch", b=None)


def delete(app):
    for name in ("a", "t", "n"):
        app.call("delete_item", Key=app.key(name))
    return app.expect(a=None, t=None, n=None)


def arrived(members, expected):
    """Whether every member holds what is expected, and the first that does not."""
    for member in members:
        items = {item[KEY]["S"]: item for item in compare.read(member).values()}
        for key, value in expected.items():
            found = items.get(key, {}).get("value", {}).get("S")
            if found != value:
                return False, f"{key} at {member.arn} is {found}, not {value}"
            if ".d." in items.get(key, {}).get(compare.STAMP, {}).get("S", ""):
                return False, f"{key} at {member.arn} is marked as being deleted"
    return True, None
