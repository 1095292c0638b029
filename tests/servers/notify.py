"""Speaks sd_notify(3). Arguments: words to send, each a datagram; then it sleeps until it is signalled."""

import os
import signal
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(os.environ["NOTIFY_SOCKET"])
    for word in sys.argv[1:]:
        notify.send(word.encode())
signal.pause()
