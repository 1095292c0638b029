"""A server that does nothing by itself: the test at the other end of a socket says what it is to do and
hears every line of its control channel."""

import os
import socket
import sys
import threading

test = socket.socket(socket.AF_UNIX)
test.connect(sys.argv[1])
control = socket.socket(fileno=int(os.environ["SERVERSWAP_FD"]))
name = f"{os.environ['SERVERSWAP_GENERATION']} {os.getpid()}"
test.sendall(f"{name}\n".encode())


def hear():
    for line in control.makefile("r", newline="\n"):
        test.sendall(line.encode())


def serve(listener):
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return      # the test has closed it
        with client:
            try:
                if client.recv(1024):
                    client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{name}".encode())
            except OSError:
                pass    # it went away; the probe does


threading.Thread(target=hear, daemon=True).start()
listener = None
for order in test.makefile("r", newline="\n"):
    word, _, rest = order.rstrip("\n").partition(" ")
    if word == "say":
        control.sendall(f"{rest}\n".encode())
    elif word == "listen":
        listener = socket.create_server(("", int(rest)))
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    elif word == "close":
        listener.shutdown(socket.SHUT_RDWR)     # wakes serve(), which would keep it open
        listener.close()
    elif word == "exit":
        os._exit(0)
