"""A client as many are written: each request comes from a source port that it binds. With HOST:PORT it prints how many
requests are answered in a second."""

import http.client
import itertools
import sys
import time

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
