"""A presenter's WebSocket, nothing hidden: prints what comes, a line each, until it ends.

    presenter.py URL [--subprotocol NAME] [--say TEXT]… [--ca FILE]

    open SUBPROTOCOL      the upgrade was answered 101, with this subprotocol (or -)
    ping                  a ping came; it is answered
    text …                a text frame
    close CODE            a close frame came
    end                   the connection is gone

`--say` sends a text frame after the upgrade. With wss:// the certificate must be signed by `--ca`.
"""

import argparse
import base64
import os
import socket
import ssl
import struct
import sys
import urllib.parse

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("--subprotocol")
parser.add_argument("--say", action="append", default=[])
parser.add_argument("--ca")
args = parser.parse_args()


def tell(line):
    print(line, flush=True)


def frame(opcode, payload):
    """A client's frame: whole, masked (RFC 6455, 5.2)."""
    mask = os.urandom(4)
    length = len(payload)
    head = bytes([0x80 | opcode])
    if length < 126:
        head += bytes([0x80 | length])
    else:
        head += bytes([0x80 | 126]) + struct.pack(">H", length)
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


url = urllib.parse.urlsplit(args.url)
connection = socket.create_connection((url.hostname, url.port), timeout=300)
if url.scheme == "wss":
    connection = ssl.create_default_context(cafile=args.ca).wrap_socket(connection, server_hostname=url.hostname)
request = [
    f"GET {url.path} HTTP/1.1",
    f"Host: {url.netloc}",
    "Upgrade: WebSocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode(),
]
if args.subprotocol:
    request.append(f"Sec-WebSocket-Protocol: {args.subprotocol}")
connection.sendall("\r\n".join(request + ["", ""]).encode())
reading = connection.makefile("rb")

status = reading.readline().decode().strip()
headers = {}
while (line := reading.readline().decode().strip()) != "":
    name, value = line.split(":", 1)
    headers[name.strip().lower()] = value.strip()
if " 101 " not in status + " ":
    sys.exit(f"no upgrade: {status}")
tell("open " + headers.get("sec-websocket-protocol", "-"))
for text in args.say:
    connection.sendall(frame(1, text.encode()))

while True:
    try:
        head = reading.read(2)
        if len(head) < 2:
            break
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", reading.read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", reading.read(8))
        payload = reading.read(length)
    except OSError:
        break
    opcode = head[0] & 0x0F
    if opcode == 9:
        tell("ping")
        connection.sendall(frame(10, payload))
    elif opcode == 1:
        tell("text " + payload.decode())
    elif opcode == 8:
        tell("close " + (str(struct.unpack(">H", payload[:2])[0]) if payload else "-"))
        connection.sendall(frame(8, payload[:2]))
tell("end")
