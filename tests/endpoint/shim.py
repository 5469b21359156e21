"""A forwarder for endpoints that know neither table ARNs nor STS, such as DynamoDB Local.

The service names members by full ARN and assumes roles, always. The shim replaces a table's ARN by its name in
what is sent, and answers AssumeRole itself with an access key that is the number of the role's account: where
every access key has a database of its own, accounts are kept apart by that. Everything else passes through as
it is, both ways; signatures do not survive the change of a body, and the endpoint must not check them.
"""

import contextlib
import datetime
import http.client
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
SESSION = datetime.timedelta(hours=1)


def start(upstream):
    """Starts the shim in front of the URL `upstream`; returns its own URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.upstream = urllib.parse.urlsplit(upstream).netloc
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    """One client connection, with one connection of its own to the endpoint behind."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def setup(self):
        super().setup()
        self._behind = http.client.HTTPConnection(self.server.upstream, timeout=30)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # cases kill the service
            super().handle()

    def finish(self):
        self._behind.close()
        with contextlib.suppress(ConnectionError):
            super().finish()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "X-Amz-Target" not in self.headers:
            self._answer(200, [("Content-Type", "text/xml")], _sts(body))
            return
        body = json.dumps(_by_name(json.loads(body))).encode()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        self._behind.request("POST", self.path, body, headers)
        answer = self._behind.getresponse()
        self._answer(answer.status, answer.getheaders(), answer.read())

    def _answer(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        """Nothing: one line a request helps nobody."""


def _by_name(request):
    """The request with names in place of the ARNs of tables, wherever the API takes one."""
    if "TableName" in request:
        request["TableName"] = _name(request["TableName"])
    if "RequestItems" in request:
        request["RequestItems"] = {_name(table): items for table, items in request["RequestItems"].items()}
    for entry in request.get("TransactItems", ()):
        for operation in entry.values():
            operation["TableName"] = _name(operation["TableName"])
    return request


def _name(table):
    return table.rpartition(":table/")[2] if table.startswith("arn:") else table


def _sts(body):
    """The answer to AssumeRole, the only call of STS that is made."""
    role = urllib.parse.parse_qs(body.decode())["RoleArn"][0]
    account = role.split(":")[4]
    expires = (datetime.datetime.now(datetime.timezone.utc) + SESSION).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
        f"<AssumedRoleUser><Arn>{role}</Arn><AssumedRoleId>{account}:session</AssumedRoleId></AssumedRoleUser>"
        f"<Credentials><AccessKeyId>{account}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
        f"<SessionToken>token</SessionToken><Expiration>{expires}</Expiration></Credentials>"
        "</AssumeRoleResult></AssumeRoleResponse>"
    ).encode()
