"""Comparison of tables, item by item and type by type, with nothing of the service's own code.

Numbers are compared by exact decimal value, because an endpoint may write 1.50 as 1.5; sets without regard to
order; everything else as it is.
"""

import decimal
import re
import time

from waits import until

STAMP = "shardwalker"
_STAMP_FORM = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{2})\.p\.([0-9a-f]{32})")
SHOWN = 5


def read(table):
    """All items of a table, {key: item}, by a consistent scan."""
    pages = table.client().get_paginator("scan").paginate(TableName=table.name, ConsistentRead=True)
    return {key_of(item): item for page in pages for item in page["Items"]}


def count(table):
    """The number of items of a table, by a consistent scan."""
    pages = (
        table.client()
        .get_paginator("scan")
        .paginate(TableName=table.name, ConsistentRead=True, Select="COUNT")
    )
    return sum(page["Count"] for page in pages)


def key_of(item):
    """The key of an item of the suite's tables."""
    return item["iata"]["S"]


def exact(value):
    """An attribute value in a form whose equality is DynamoDB's."""
    ((kind, content),) = value.items()
    if kind == "N":
        return kind, decimal.Decimal(content)
    if kind == "NS":
        return kind, frozenset(decimal.Decimal(number) for number in content)
    if kind in ("SS", "BS"):
        return kind, frozenset(content)
    if kind == "L":
        return kind, tuple(exact(element) for element in content)
    if kind == "M":
        return kind, exact_item(content)
    return kind, content


def exact_item(item):
    """An item, or a map, in a form whose equality is DynamoDB's."""
    return frozenset((name, exact(value)) for name, value in item.items())


def unstamped(item):
    """The item without the service's own attribute."""
    return {name: value for name, value in item.items() if name != STAMP}


def differences(expected, found):
    """What distinguishes the items `found` from those `expected`, without the stamps; empty when they agree."""
    told = [f"{key}: missing" for key in sorted(expected.keys() - found.keys())]
    told += [f"{key}: should not be there" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        if exact_item(unstamped(expected[key])) != exact_item(unstamped(found[key])):
            told.append(f"{key}: is {unstamped(found[key])}, should be {unstamped(expected[key])}")
    return told


def summary(told):
    """The first of the differences, and how many more there are."""
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more


def converged(service, expected, peers, limit):
    """Waits until every peer holds exactly the `expected` items; returns what the peers hold.

    `service` may be None when nothing should still be running.
    """
    held = {}

    def agree():
        if service:
            service.check_alive()
        for peer in peers:
            held[peer.arn] = read(peer)
            told = differences(expected, held[peer.arn])
            if told:
                return False, f"{peer.arn}: {summary(told)}"
        return True, None

    until("the peers hold what the source holds", agree, limit, pause=0.5)
    return [held[peer.arn] for peer in peers]


def check_stamps(held, started):
    """Every item of every peer has a well-formed stamp of this run, and all peers have the same one.

    The versions are a function of the stream's records alone, so a peer that was written by a restarted
    service still gets the stamp that the others got.
    """
    now = time.time()
    first, *others = held
    for key, item in first.items():
        assert STAMP in item, f"{key} has no stamp"
        stamp = item[STAMP].get("S", "")
        form = _STAMP_FORM.fullmatch(stamp)
        assert form, f"{key} has the stamp {item[STAMP]}"
        written = (int(form.group(1), 16) >> 16) / 1000
        # Creation times are whole seconds rounded down, and the clock never runs ahead of them by much.
        assert started - 2 <= written <= now + 60, f"{key} has a stamp of the time {written}, now it is {now}"
        for other in others:
            found = other[key].get(STAMP)
            assert found == item[STAMP], f"{key} has the stamps {stamp} and {found}"
