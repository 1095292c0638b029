"""A check with a short patience: GET /health at the preview is answered with 200. Writes its pid to the file that is named."""

import http.client
import os
import sys

with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.replace(sys.argv[1] + ".new", sys.argv[1])
host, port = os.environ["SERVERSWAP_PREVIEW"].rsplit(":", 1)
connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=1)
connection.request("GET", "/health")
status = connection.getresponse().status
sys.exit(f"status {status}" if status != 200 else 0)
