#!/usr/bin/env python3
"""Runs the real `shardwalker` binary against an endpoint that is not ours.

Needs nothing but Python 3.10 and the built binary: the client library and the endpoint go into virtual
environments under target/endpoint. `--help` lists the options, docs/endpoints.md the environment variables
and what each endpoint can't do. Exit code: 0 all cases passed, 1 a case failed, 2 the suite could not run.
"""

import argparse
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import venvs  # noqa: E402  (standard library only, like everything up to the re-execution below)

KINDS = ("ministack", "moto", "sandbox", "dynamodb-local", "aws")


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--endpoint",
        choices=KINDS,
        default=os.environ.get("SHARDWALKER_ENDPOINT_KIND", KINDS[0]),
        help="what to run against (default: %(default)s)",
    )
    parser.add_argument(
        "--case", action="append", dest="cases", metavar="NAME", help="only this case; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and leave")
    parser.add_argument(
        "--binary",
        type=pathlib.Path,
        metavar="PATH",
        help="the shardwalker binary (default: build it with cargo, then target/debug/shardwalker)",
    )
    parser.add_argument(
        "--items", type=int, metavar="N", help="at most N items of the data (default: all; moto 200)"
    )
    parser.add_argument(
        "--seconds", type=int, default=60, metavar="N", help="how long members are written at once (default: 60)"
    )
    parser.add_argument("--seed", type=int, help="of the load (default: a new one, printed)")
    return parser.parse_args(argv)


def built_binary():
    """The debug binary, built from this source tree."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", venvs.ROOT / "target"))
    subprocess.run(["cargo", "build", "--quiet", "--bin", "shardwalker"], cwd=venvs.ROOT, check=True)
    return target / "debug" / "shardwalker"


def main(argv):
    arguments = parse(argv)
    if not venvs.inside("client"):
        python = venvs.ensure("client")
        os.execv(python, [str(python), str(HERE / "run.py"), *argv])

    import suite  # needs boto3, so only from here on

    if arguments.list:
        for case in suite.CASES:
            print(f"{case.NAME:20} {case.__doc__.splitlines()[0]}")
        return 0
    if not arguments.binary:
        arguments.binary = built_binary()
    return suite.run(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        print(f"endpoint suite: {error}", file=sys.stderr)
        sys.exit(2)
