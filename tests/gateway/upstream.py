"""A stand-in for the server behind a gateway that keeps what arrives, byte for byte.

    upstream.py PORT_FILE ARRIVED_DIR

Each request's head goes into ARRIVED_DIR/N, N = 1, 2, 3 … as they come. A request whose path has `cut` in it gets no answer:
the connection ends. One with `silent` in it is upgraded to a WebSocket on which nothing ever comes. One with `long` in it gets
64 MiB, and ARRIVED_DIR/long tells whether they were all `taken`, or `stopped` when nothing more was for five seconds. Any other
gets 200 and nothing. Listens on a free port of 127.0.0.1 and writes host:port into PORT_FILE.
"""

import itertools
import os
import socketserver
import sys

port_file, directory = sys.argv[1:]
numbers = itertools.count(1)


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline()
                if not line:
                    return
                head += line
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    self.rfile.read(int(line.split(b":")[1]))
            name = os.path.join(directory, str(next(numbers)))
            with open(name + ".new", "wb") as file:
                file.write(head)
            os.rename(name + ".new", name)  # whoever looks finds all of it, or nothing
            if b"cut" in head.split(b" ")[1]:
                return
            if b"silent" in head.split(b" ")[1]:
                self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                self.rfile.read()  # until the peer has gone
                return
            if b"long" in head.split(b" ")[1]:
                return self.long()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def long(self):
        self.connection.settimeout(5)
        piece, count = bytes(65536), 1024
        try:
            self.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * count))
            for _ in range(count):
                self.connection.sendall(piece)
            came = "taken"
        except TimeoutError:
            came = "stopped"
        name = os.path.join(directory, "long")
        with open(name + ".new", "w") as file:
            file.write(came)
        os.rename(name + ".new", name)
        self.connection.settimeout(None)
        self.rfile.read()  # until the peer has gone


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


with Server(("127.0.0.1", 0), Connection) as server:
    with open(port_file + ".new", "w") as file:
        file.write("%s:%d" % server.server_address)
    os.rename(port_file + ".new", port_file)
    server.serve_forever()
