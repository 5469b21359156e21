"""A TCP proxy that can be cut: for those behind it the endpoint is unreachable, and then it is back."""

import asyncio
import threading
import urllib.parse

import processes


class Proxy:
    """Passes connections on to one server, on a port of its own that stays the same."""

    def __init__(self, url):
        target = urllib.parse.urlsplit(url)
        self._target = (target.hostname, target.port)
        self._port = processes.free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._server = None
        self._writers = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.restore()

    def restore(self):
        """Takes connections."""
        self._wait(self._listen())

    def cut(self):
        """Breaks all connections, and refuses new ones."""
        self._wait(self._close())

    def _wait(self, work):
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _close(self):
        if self._server:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        self._writers -= ends


async def _pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # cut, or the other side went
    finally:
        writer.close()
