"""All ten attribute types arrive exactly: nested, empty, at the limits."""

import compare

NAME = "exact_types"
NEEDS = ()

DEPTH = 31  # of nested lists and maps inside the attribute: 32 levels with itself
DIGITS = "12345678901234567890123456789012345678"


def nested(depth):
    """Lists in maps in lists..., `depth` levels, with a number at the bottom."""
    value = {"N": DIGITS}
    for level in range(depth):
        value = {"L": [value]} if level % 2 else {"M": {"in": value}}
    return value


def items():
    """The items by key, without the key attribute."""
    return {
        "scalars": {
            "s": {"S": "text"},
            "n": {"N": "-0.5"},
            "b": {"B": b"\x00\xff"},
            "t": {"BOOL": True},
            "z": {"NULL": True},
        },
        "empty": {"s": {"S": ""}, "b": {"B": b""}, "l": {"L": []}, "m": {"M": {}}},
        "sets": {
            "ss": {"SS": ["b", "a", "ü"]},
            "ns": {"NS": ["3", "-1.5", DIGITS]},
            "bs": {"BS": [b"\x01", b"\x00\x00", b"z"]},
        },
        "numbers": {
            "long": {"N": DIGITS},
            "negative": {"N": f"-{DIGITS}"},
            "fraction": {"N": f"0.{DIGITS}"},
            "split": {"N": f"{DIGITS[:19]}.{DIGITS[19:]}"},
            "large": {"N": "9.9999999999999999999999999999999999999E+125"},
            "small": {"N": "1E-130"},
            "zero": {"N": "0"},
        },
        "deep": {"d": nested(DEPTH)},
        "mixed": {
            "m": {
                "M": {
                    "l": {
                        "L": [
                            {"S": ""},
                            {"NULL": True},
                            {"BOOL": False},
                            {"SS": ["x"]},
                            {"M": {"ns": {"NS": ["0"]}}},
                        ]
                    }
                }
            },
        },
        "names": {
            "with space": {"S": "a"},
            "a.b[0]": {"S": "b"},
            "#size": {"S": "c"},
            "ключ": {"S": "d"},
            "size": {"S": "reserved"},
        },
        "unicode": {"s": {"S": "\u0000\u2028é\U0001f6eb"}},
        "large": {"s": {"S": "x" * 300_000}},
        "Schlüssel €": {"s": {"S": "the key itself"}},
    }


def run(context):
    group = context.group("types")
    service = context.service(group)
    service.start()
    client = group.source.client()
    expected = {}
    for key, attributes in items().items():
        expected[key] = {"iata": {"S": key}, **attributes}
        client.put_item(TableName=group.source.name, Item=expected[key])
    told = compare.differences(expected, compare.read(group.source))
    assert not told, f"the endpoint itself changed them: {compare.summary(told)}"
    compare.converged(service, expected, group.peers, 60)
    assert service.terminate() == 0, f"exit code after SIGTERM; see {service.log}"
    context.say(f"{len(expected)} items, {sum(map(len, expected.values()))} attributes")
