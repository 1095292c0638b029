"""Servers that each do one thing out of the ordinary. The first argument is what, the second the port; each answers a
request with its generation and its pid."""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading
import time

PORT = int(sys.argv[2])
REST = sys.argv[3:]
SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF, SO_LOCK_FILTER = 26, 51, 44
IPPROTO_MPTCP = 262


def answer(connection):
    try:
        connection.settimeout(10)
        if connection.recv(4096):
            text = "%s %d" % (os.environ.get("SERVERSWAP_GENERATION"), os.getpid())
            head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text)
            connection.sendall((head + text).encode())
    except OSError:
        pass
    finally:
        connection.close()


def serve(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def bound(host="127.0.0.1", port=PORT, share=False, protocol=0, device=None, only_six=None):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if only_six is not None:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_six)
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    made.bind((host, port))
    return made


def listener(*args, **kwargs):
    made = bound(*args, **kwargs)
    made.listen(128)
    return made


def attach(made, option):
    """A filter that takes everything, or a program that names the first socket."""
    value = 0xFFFFFFFF if option == SO_ATTACH_FILTER else 0
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, value))
    made.setsockopt(socket.SOL_SOCKET, option, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))


def silent():
    """Listens and never accepts; ends after so many seconds."""
    kept = listener()
    time.sleep(float(REST[0]) if REST else 600)
    del kept


def three_sockets():
    """Three sockets of one port; `deaf`: the last one accepts nothing; `close`: the first is closed, and nobody accepts."""
    kept = [listener(share=True) for _ in range(3)]
    if "close" in REST:
        kept[0].close()
        time.sleep(600)
    for one in kept[: 2 if "deaf" in REST else 3]:
        threading.Thread(target=serve, args=(one,), daemon=True).start()
    time.sleep(600)


def free_port():
    """Looks for a free port by listening there on one host, and serves on another."""
    try:
        listener(REST[0]).close()
    except OSError as e:
        print(e, file=sys.stderr)
    serve(listener(REST[1]))


def one_more():
    """Opens another listener when somebody has asked for it."""
    first = listener()
    answer(first.accept()[0])
    while True:
        answer(first.accept()[0])
        if os.path.exists(REST[1]):
            break
    other = listener(port=int(REST[0]))
    print("listens at the other port", flush=True)
    threading.Thread(target=serve, args=(other,), daemon=True).start()
    serve(first)


def respawns():
    """Replaces its listener every half second."""
    while True:
        current = listener()
        current.settimeout(0.05)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                connection = current.accept()[0]
            except TimeoutError:
                continue
            threading.Thread(target=answer, args=(connection,), daemon=True).start()
        current.close()


def keeps_listener():
    """A helper of the first generation, in a session and an environment of its own, has the listener."""
    kept = listener()
    os.set_inheritable(kept.fileno(), True)
    if os.environ.get("SERVERSWAP_GENERATION") == "1":
        helper = ["setsid", "-f", "env", "-i", "PATH=/usr/bin:/bin", *REST, "sleep", "600"]
        subprocess.Popen(helper, close_fds=False).wait()
    serve(kept)


def mptcp():
    """Listens by MPTCP if it can, as Go does."""
    for protocol in (IPPROTO_MPTCP, 0):
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol).close()
        except OSError as e:
            print("protocol", protocol, e, file=sys.stderr)
            continue
        serve(listener(protocol=protocol))


def own_filter():
    """Has a filter of its own on the listener, and says so of each connection."""
    made = bound()
    attach(made, SO_ATTACH_FILTER)
    if "lock" in REST:
        made.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
    made.listen(64)
    if "die" in REST:
        time.sleep(0.3)
        sys.exit(3)
    while True:
        connection = made.accept()[0]
        if filter_length(made) != 1:
            connection.close()
            continue
        answer(connection)


def filter_length(made):
    size = ctypes.c_uint(0)
    ctypes.CDLL(None).getsockopt(made.fileno(), 1, SO_ATTACH_FILTER, None, ctypes.byref(size))
    return size.value


def vain_program():
    """Tries to steer a port, which fails; and steers one that is no address of its own."""
    try:
        attach(socket.socket(socket.AF_INET, socket.SOCK_STREAM), SO_ATTACH_REUSEPORT_CBPF)
    except OSError as e:
        print(e, file=sys.stderr)
    other = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind(("127.0.0.9", 0))
    other.listen()
    attach(other, SO_ATTACH_REUSEPORT_CBPF)
    serve(listener())


def sessions():
    """Takes three session ports from one on, by "bind fails, take the next"."""
    kept, ports, kind = [], [], socket.SOCK_DGRAM if "udp" in REST else socket.SOCK_STREAM
    port = int(REST[-1])
    while len(kept) < 3:
        made = socket.socket(socket.AF_INET, kind)
        host = "0.0.0.0" if len(kept) == 1 else "127.0.0.1"
        try:
            made.bind((host, port))
            kept.append(made)
            ports.append(port)
            port = int(REST[-1])
        except OSError:
            made.close()
            port += 1
    print("sessions", *ports, flush=True)
    serve(listener())


def source_port():
    """Connects from a fixed port, the first from one on that is free, before it listens."""
    far = socket.create_server(("127.0.0.1", 0))
    port = int(REST[-1])
    while True:
        out = socket.socket()
        try:
            out.bind(("127.0.0.1", port))
            break
        except OSError:
            out.close()
            port += 1
    out.connect(("127.0.0.1", int(os.environ.get("FAR") or far.getsockname()[1])))
    print("from", port, flush=True)
    serve(listener())


def only_six():
    """Serves v6 alone, beside whoever has the port in v4; `daemon`: its first process is done then."""
    own = listener("::", only_six=1)
    if "daemon" in REST and os.fork():
        # Not before it was seen to accept.
        time.sleep(2)
        os._exit(0)
    serve(own)


def asks():
    """Serves, and says READY for another port once everything that follows its start is over, and serves that too."""
    threading.Thread(target=serve, args=(listener(),), daemon=True).start()
    time.sleep(5)
    channel = int(os.environ["SERVERSWAP_FD"])
    address = "127.0.0.1:" + REST[0]
    os.write(channel, b"READY %s\n" % address.encode())
    heard = b""
    while b"GO " + address.encode() not in heard:
        heard += os.read(channel, 4096)
    serve(listener(port=int(REST[0])))


def twice():
    """Listens, and wants to listen there once more."""
    first = listener()
    try:
        listener()
        print("it listens twice", flush=True)
    except OSError as e:
        print("the second:", e.strerror, flush=True)
    serve(first)


def odd_length():
    """Gives bind(2) a longer address than it needs."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", PORT) + socket.inet_aton("127.0.0.1")
    address = address.ljust(int(REST[0]), b"\0")
    if ctypes.CDLL(None, use_errno=True).bind(made.fileno(), address, len(address)):
        sys.exit(os.strerror(ctypes.get_errno()))
    made.listen(64)
    serve(made)


def notices():
    """Comes from a source port of its choice, opens a port later, has a filter on it, and says what became of them."""
    own = listener(port=PORT)
    threading.Thread(target=serve, args=(own,), daemon=True).start()
    source = bound(port=int(REST[0]))
    source.connect(own.getsockname())
    answered = source.send(b"GET / HTTP/1.0\r\n\r\n") and source.recv(4096)
    time.sleep(1)
    later = bound(port=int(REST[1]))
    attach(later, SO_ATTACH_FILTER)
    later.listen(8)
    shares = [made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for made in (source, later)]
    print("answered %d, shares %s, filter %d" % (len(answered) > 0, shares, filter_length(later)), flush=True)
    later.close()
    time.sleep(600)


def thief():
    """A worker that has become another user, with an empty environment, binds and listens where somebody else serves: a
    socket of its own, or one that was `made` before."""
    own = listener(port=PORT)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.set_inheritable(True)
    if os.fork() == 0:
        number = str(made.fileno()) if "made" in REST else "-1"
        os.execve(sys.executable, [sys.executable, __file__, "takes", REST[0], number], {})
    serve(own)


def takes():
    os.setuid(65534)
    try:
        made = socket.socket(fileno=int(REST[0])) if REST[0] != "-1" else socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", PORT))
        made.listen(128)
        print("it has the port", flush=True)
    except OSError as e:
        print("it gets:", e.strerror, flush=True)


def devices():
    """A listener for each device."""
    for device in [word for word in REST if word != "mute"]:
        one = listener("0.0.0.0", share=True, device=device)
        if "mute" not in REST:
            threading.Thread(target=serve, args=(one,), daemon=True).start()
    time.sleep(600)


globals()[sys.argv[1]]()
