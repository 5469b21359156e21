"""Checks the files of deploy/, each with the tool of its field, and that every metric in them exists.

    python3 tests/deploy/check.py            all but the image
    python3 tests/deploy/check.py --image    builds the static binary, and the image where there is a tool for it

The Python tools are installed into an environment under target/deploy; promtool comes from the
distribution's package `prometheus`, which is installed when it is missing and this runs as root. What
cannot be checked on a machine is said, and counted as skipped.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv

import tls

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEPLOY = ROOT / "deploy"
TARGET = ROOT / "target" / "deploy"
REQUIREMENTS = HERE / "requirements.txt"
# The schema of Terraform's AWS provider 6.69, for provider.py: read as it is, without what it would need to run.
PROVIDER = "cdktn-provider-aws==25.8.1"
BINARY = ROOT / "target" / "debug" / "shardwalker"

skipped = []


def skip(what, why):
    skipped.append(what)
    print(f"NOT CHECKED: {what}: {why}")


def run(*command, **more):
    """Runs a command; its output, or the end of the whole run."""
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **more
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment():
    """The environment with the tools; made anew when the requirements changed."""
    made_from, wanted = TARGET / "made-from.txt", f"{REQUIREMENTS.read_text()}{PROVIDER}\n"
    if not made_from.exists() or made_from.read_text() != wanted:
        shutil.rmtree(TARGET, ignore_errors=True)
        venv.create(TARGET, with_pip=True)
        pip = [TARGET / "bin/pip", "--quiet", "--disable-pip-version-check"]
        run(*pip, "install", "-r", REQUIREMENTS)
        run(*pip, "download", "--no-deps", "--dest", TARGET / "provider", PROVIDER)
        made_from.write_text(wanted)
    return TARGET / "bin"


def promtool():
    found = shutil.which("promtool")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], check=False, **quiet)
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "prometheus"]
        subprocess.run(install, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, **quiet)
        found = shutil.which("promtool")
    return found


def metrics():
    """Every series that the code has, by docs/METRICS.md, which a test compares with the code."""
    names = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/METRICS.md").read_text(), re.M):
        names.add(name)
        if kind == "histogram":
            names.update(name + suffix for suffix in ("_bucket", "_sum", "_count"))
    assert len(names) > 20, "docs/METRICS.md is not as it was"
    return names


def known(text, where):
    unknown = set(re.findall(r"\bshardwalker_\w+", text)) - metrics()
    if unknown:
        sys.exit(f"{where} names metrics that do not exist: {sorted(unknown)}")


# What `policy` writes for the example, which has members by resource policies and by roles, a group and a
# bucket: the least of it, and all that can be asked for.
ROLE = "arn:aws:iam::999999999999:role/shardwalker"
POLICY = ["policy", "-c", DEPLOY / "config.example.toml", "--principal", ROLE]
KEY = "key/00000000-0000-0000-0000-000000000000"
ASKED = {
    "plain": ["--org-id", "o-example"],
    "whole": [
        *("--features", "backfill,verify,repair,strip,cutover,create-state-table", "--vpce", "vpce-1"),
        *("--kms-key", f"orders-old=arn:aws:kms:eu-west-1:111111111111:{KEY}"),
        *("--kms-key", f"state=arn:aws:kms:eu-west-1:999999999999:{KEY}"),
    ],
}


def generated(tool):
    """The templates of each account, as files for another tool to look at."""
    directory = TARGET / "generated" / tool
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name, asked in ASKED.items():
        documents = json.loads(run(BINARY, *POLICY, *asked))["documents"]
        for account in {document["account"] for document in documents}:
            text = run(BINARY, *POLICY, *asked, "--format", tool, "--side", account)
            suffix = "json" if tool == "cloudformation" else "tf"
            (directory / f"{name}.{account}.{suffix}").write_text(text)
    return sorted(directory.iterdir())


def check_policies(tools):
    path = TARGET / "documents.json"
    for name, asked in ASKED.items():
        path.write_text(run(BINARY, *POLICY, *asked))
        count = run(tools / "python", HERE / "policies.py", path).strip()
        print(f"policies: {count} documents ({name}) pass parliament")


def check_cloudformation(tools):
    files = sorted((DEPLOY / "cloudformation").glob("*.yaml")) + generated("cloudformation")
    run(tools / "cfn-lint", "--", *files)
    print(f"cloudformation: {len(files)} templates pass cfn-lint")
    run(sys.executable, "-m", "unittest", "discover", "--start-directory", HERE)
    print("cloudformation: the function that attaches policies leaves those of others alone")


def check_member_templates(tools):
    """What they allow is what `policy` writes for each part, with and without the features that read whole tables."""
    directory = TARGET / "member"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    role = 'assume_role = { role = "arn:aws:iam::111111111111:role/in", external_id = "one" }'
    one = f'name = "one"\nnumber = 1\ntable = "arn:aws:dynamodb:eu-west-1:111111111111:table/one"\n{role}'
    two = 'name = "two"\nnumber = 2\ntable = "arn:aws:dynamodb:eu-west-1:222222222222:table/two"'
    state = '[state]\ntable = "arn:aws:dynamodb:eu-west-1:999999999999:table/state"'
    uses = {
        "source": '[[route]]\nname = "r"\nfrom = "one"\nto = ["two"]',
        "peer": '[[route]]\nname = "r"\nfrom = "two"\nto = ["one"]',
        "group": '[[group]]\nname = "g"\nmembers = ["one", "two"]',
    }
    for (part, use), (name, features) in itertools.product(
        uses.items(), {"plain": [], "whole": ["--features", "backfill,verify,repair"]}.items()
    ):
        config = directory / "config.toml"
        config.write_text(f"{state}\n[[member]]\n{one}\n[[member]]\n{two}\n{use}\n")
        (directory / f"{part}.{name}.json").write_text(run(BINARY, "policy", "-c", config, *features))
    documents = sorted(directory.glob("*.json"))
    templates = [DEPLOY / "cloudformation/member.yaml", DEPLOY / "terraform/member/main.tf"]
    run(tools / "python", HERE / "member.py", *templates, *documents)
    print(f"members' templates: they allow what policy writes, in {len(documents)} cases each")


def check_terraform(tools):
    files = sorted((DEPLOY / "terraform").rglob("*.tf")) + generated("terraform")
    run(tools / "python", HERE / "terraform.py", *files)
    if shutil.which("terraform"):
        run("terraform", "fmt", "-check", "-recursive", DEPLOY / "terraform")
        run("terraform", "fmt", "-check", TARGET / "generated/terraform")
    else:
        skip("the form of the Terraform files", "there is no terraform here")
    print(f"terraform: {len(files)} files are parsed, and every reference in them leads somewhere")
    (wheel,) = (TARGET / "provider").glob("*.whl")
    blocks = run(tools / "python", HERE / "provider.py", wheel, *files).strip()
    print(f"terraform: {blocks} resources and data sources are as the AWS provider has them")


def check_kubernetes(tools):
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    own = [f for f in files if f.name not in ("kustomization.yaml", "servicemonitor.yaml")]
    run(tools / "kubernetes-validate", "--strict", "--version", "1.33", *own)
    print(f"kubernetes: {len(own)} manifests pass kubernetes-validate")
    text = run(tools / "kubectl", "kustomize", DEPLOY / "kubernetes")
    assert text.count("kind: Deployment") == 1 and "name: shardwalker-" in text, text
    run(tools / "python", HERE / "models.py", "servicemonitor", DEPLOY / "kubernetes/servicemonitor.yaml")
    print("kubernetes: kustomize builds, and the ServiceMonitor is as the operator's model has it")
    run(BINARY, "check", "--offline", "-c", DEPLOY / "kubernetes/shardwalker.toml")


def check_prometheus():
    rules = DEPLOY / "prometheus/alerts.yml"
    # What others scale by, too.
    for path in [rules, *DEPLOY.glob("cloudformation/*.yaml"), *DEPLOY.glob("terraform/**/*.tf")]:
        known(path.read_text(), path)
    tool = promtool()
    if tool is None:
        skip("the alerts", "there is no promtool here, and the package prometheus could not be installed")
        return
    run(tool, "check", "rules", rules)
    run(tool, "test", "rules", DEPLOY / "prometheus/alerts_test.yml")
    names = set(re.findall(r"alert: (\w+)", rules.read_text()))
    tested = set(re.findall(r"alertname: (\w+)", (DEPLOY / "prometheus/alerts_test.yml").read_text()))
    assert names == tested, f"alerts without a test: {names - tested}"
    print(f"prometheus: {len(names)} alerts pass promtool, with a unit test each")


def overlaps(one, other):
    apart = (
        one["x"] + one["w"] <= other["x"]
        or other["x"] + other["w"] <= one["x"]
        or one["y"] + one["h"] <= other["y"]
        or other["y"] + other["h"] <= one["y"]
    )
    return not apart


def check_grafana(tools):
    path = DEPLOY / "grafana/shardwalker.json"
    board = json.loads(path.read_text())
    known(path.read_text(), path)
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels), "two panels have one id"
    for one, other in itertools.combinations(panels, 2):
        assert not overlaps(one["gridPos"], other["gridPos"]), f"{one['title']} lies over {other['title']}"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    shown = set(re.findall(r"\bshardwalker_\w+", " ".join(queries)))
    documented = {name for name in metrics() if not re.search("_(bucket|sum|count)$", name)}
    missing = {name for name in documented if not any(one.startswith(name) for one in shown)}
    assert not missing, f"the dashboard does not show {sorted(missing)}"
    tool = promtool()
    if tool is None:
        skip("the dashboard's queries", "there is no promtool here")
    else:
        # A query is right when it is one as a rule; Grafana's variables stand for values.
        rules = [
            {"record": f"query:{number}", "expr": query.replace("$route", ".*")}
            for number, query in enumerate(queries)
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
            file.flush()
            run(tool, "check", "rules", file.name)
    print(f"grafana: {len(panels)} panels, {len(queries)} queries, every metric of docs/METRICS.md is shown")
    run(tools / "python", HERE / "models.py", "dashboard", path)
    print("grafana: the dashboard is as the model of Grafana's foundation SDK has it")


def check_systemd():
    if shutil.which("systemd-analyze") is None:
        skip("the systemd unit", "there is no systemd-analyze here")
        return
    unit = (DEPLOY / "systemd/shardwalker.service").read_text()
    with tempfile.TemporaryDirectory() as directory:
        # The binary need not be installed here.
        path = pathlib.Path(directory) / "shardwalker.service"
        path.write_text(unit.replace("/usr/local/bin/shardwalker", shutil.which("true")))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    own = [line for line in done.stderr.splitlines() if "shardwalker.service" in line]
    if done.returncode != 0 or own:
        sys.exit(f"systemd-analyze verify: {done.stderr}")
    print("systemd: the unit passes systemd-analyze verify")


def check_config():
    run(BINARY, "check", "--offline", "-c", DEPLOY / "config.example.toml")
    print("config: the annotated one has no problems")


def check_image():
    target = f"{os.uname().machine}-unknown-linux-musl"
    installed = run("rustup", "target", "list", "--installed").split() if shutil.which("rustup") else []
    if target not in installed or shutil.which("musl-gcc") is None:
        skip("the image", f"it takes the Rust target {target} and musl-gcc")
        return
    print(run("bash", DEPLOY / "container/build.sh", "shardwalker:check", cwd=ROOT))
    context = ROOT / "target/image"
    with tempfile.TemporaryDirectory() as directory:
        # Nothing but what the image has, as the user that it has.
        root = pathlib.Path(directory)
        root.chmod(0o755)
        shutil.copy(context / "shardwalker", root / "shardwalker")
        (root / "etc/ssl/certs").mkdir(parents=True)
        shutil.copy(context / "ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
        shutil.copy(DEPLOY / "config.example.toml", root / "config.toml")
        if os.geteuid() == 0:
            inside = ["chroot", "--userspec=65532:65532", root, "/shardwalker"]
            run(*inside, "check", "--offline", "-c", "/config.toml")
            help_text = run(*inside, "--help")
            assert not re.search(r"^ +(sandbox|demo) ", help_text, re.M), help_text
            print("image: its files alone run as the user 65532, without the sandbox")
            check_image_tls(root, inside)
        else:
            skip("running the image's files alone", "it takes root")


def check_image_tls(root, inside):
    """With the certificates that the image has, and no others, it speaks to DynamoDB and to S3."""
    if shutil.which("openssl") is None:
        skip("TLS in the image", "there is no openssl here to make a certificate")
        return
    # As the Dockerfile sets it.
    environment = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
    environment |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "none"}
    certificates = root / "etc/ssl/certs/ca-certificates.crt"
    with tempfile.TemporaryDirectory() as directory, tls.serving(pathlib.Path(directory)) as port:
        endpoint = f'endpoint = "https://127.0.0.1:{port}"'
        table = "arn:aws:dynamodb:eu-west-1:111111111111:table"
        (root / "tls.toml").write_text(
            f'{endpoint}\n[state]\ntable = "{table}/state"\n'
            f'[[member]]\nname = "orders"\ntable = "{table}/orders"\n'
            f'[[feed]]\nname = "lake"\nurl = "s3://lake"\nregion = "eu-west-1"\n{endpoint}\n'
            '[[route]]\nname = "orders"\nfrom = "orders"\nto = ["lake"]\n'
        )

        def verdicts():
            command = [*inside, "check", "--json", "-c", "/tls.toml"]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
            )
            assert done.returncode == 1, f"{done.returncode}: {done.stdout}{done.stderr}"
            cells = json.loads(done.stdout)["permissions"]
            return {(cell["member"], cell["action"]): cell["verdict"] for cell in cells}

        asked = [("orders", "dynamodb:DescribeTable"), ("lake", "s3:PutObject")]
        stranger = verdicts()
        assert all(stranger[one] == "cannot know" for one in asked), stranger
        certificates.write_text(
            certificates.read_text() + (pathlib.Path(directory) / "authority.pem").read_text()
        )
        trusted = verdicts()
        assert all(trusted[one] == "denied" for one in asked), trusted
    print("image: TLS by its own certificates, to DynamoDB and S3; an unknown authority is refused")


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--image", action="store_true", help="build the image instead")
    image = arguments.parse_args().image
    if image:
        checks = [check_image]
    else:
        # The binary of the tests, which are built already: a plain build would build the SDK a second time.
        run("cargo", "test", "--quiet", "--locked", "--no-run", "--test", "it", cwd=ROOT)
        tools = environment()
        checks = [
            check_config,
            lambda: check_policies(tools),
            lambda: check_cloudformation(tools),
            lambda: check_terraform(tools),
            lambda: check_member_templates(tools),
            lambda: check_kubernetes(tools),
            check_prometheus,
            lambda: check_grafana(tools),
            check_systemd,
        ]
    for check in checks:
        check()
    print(f"{len(checks)} passed, 0 failed, {len(skipped)} skipped")


if __name__ == "__main__":
    main()
