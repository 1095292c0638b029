"""A client as many are written, and a server for it: each request comes from a source port that the client binds. Without
an argument it serves, and prints its port; with HOST:PORT it prints how many requests are answered in a second."""

import http.client
import http.server
import itertools
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"hello\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if len(sys.argv) == 1:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
end, answered = time.monotonic() + 1, 0
for source in itertools.cycle(range(20_000, 30_000)):
    if time.monotonic() > end:
        break
    client = http.client.HTTPConnection(sys.argv[1], source_address=("127.79.0.1", source))
    try:
        client.request("GET", "/", headers={"Connection": "close"})
        answered += len(client.getresponse().read()) > 0
    except OSError:
        pass
    client.close()
print(answered)
