"""A server that speaks TLS with a certificate of an authority of its own, and denies everything: whoever is
told so has trusted it.
"""

import contextlib
import http.server
import ssl
import subprocess
import threading

DENIED = {
    "dynamodb": b'{"__type": "com.amazon.coral.service#AccessDeniedException", "message": "not authorized"}',
    "s3": b"<Error><Code>AccessDenied</Code><Message>not authorized</Message></Error>",
}


class Denies(http.server.BaseHTTPRequestHandler):
    def deny(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        # DynamoDB's requests all go to the root.
        service, status = ("dynamodb", 400) if self.path == "/" else ("s3", 403)
        self.send_response(status)
        self.send_header("content-length", str(len(DENIED[service])))
        self.end_headers()
        self.wfile.write(DENIED[service])

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = deny

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Who does not trust the certificate hangs up, which is no fault of this side."""


def openssl(*arguments, directory):
    done = subprocess.run(
        ["openssl", *arguments], cwd=directory, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def serving(directory):
    """Serves on 127.0.0.1; gives the port. The authority is in `directory`, as authority.pem."""
    own = ["-x509", "-days", "2", "-subj", "/CN=an authority of its own"]
    of_authority = ["-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2"]
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, *own, "-keyout", "authority.key", "-out", "authority.pem", directory=directory)
    asks = ["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "request.pem"]
    openssl(*new, *asks, directory=directory)
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signs = ["x509", "-req", "-in", "request.pem", *of_authority, "-extfile", "names", "-out", "server.pem"]
    openssl(*signs, directory=directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    server = Server(("127.0.0.1", 0), Denies)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
