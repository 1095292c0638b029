"""A server that becomes a daemon and knows nothing of serverswap. Arguments: a port; then any of `first`: it listens
before it forks, else afterwards; `late=SECS`: so much later; `wipe`: it writes over its environment, as those do that
set their title; `mute`: never listens; `deaf`: never accepts; `foreground`: forks only what the other words say;
`session=FILE`, `group=FILE`: starts a job in a session of its own, in its own group, which writes its pid to the file;
`helper=FILE`: as `session`, with an empty environment; `keeps=FILE`: as `helper`, and it has the listener."""

import os
import socket
import sys
import threading
import time

port, words = int(sys.argv[1]), sys.argv[2:]
values = dict(word.split("=", 1) for word in words if "=" in word)


def wipe():
    """As setproctitle() does it: the block that the kernel shows as /proc/PID/environ is memory of ours."""
    import ctypes

    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    ctypes.memset(start, ord("x"), end - start - 1)


def job(name, detach, environment, fd=None):
    if name not in values or os.fork():
        return
    if detach:
        os.setsid()
        if os.fork():
            os._exit(0)
    if fd is not None:
        os.set_inheritable(fd, True)
    with open(values[name] + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(values[name] + ".new", values[name])
    os.execve("/bin/sleep", ["sleep", "1000"], environment)


def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(128)
    return listener


def answer(connection):
    try:
        connection.recv(4096)
        body = f"{os.environ.get('SERVERSWAP_GENERATION', 0)} {os.getpid()}\n".encode()
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body)
    except OSError:
        pass
    connection.close()


listener = listen() if "first" in words else None
if "foreground" not in words:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
if "wipe" in words:
    wipe()
time.sleep(float(values.get("late", 0)))
while "mute" in words:
    time.sleep(1)
listener = listener or listen()
# Before a thread runs. The processes that leave the server leave its listener too, close-on-exec as it is.
job("session", True, dict(os.environ))
job("group", False, dict(os.environ))
job("helper", True, {})
job("keeps", True, {}, listener.fileno())
while "deaf" in words:
    time.sleep(1)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
