"""Runs a command under the system call filter of a systemd unit, as systemd would make it, for where systemd does not run.

    sandbox.py UNIT COMMAND…

From the unit's SystemCallFilter (sets as systemd-analyze knows them), SystemCallErrorNumber, MemoryDenyWriteExecute,
RestrictAddressFamilies, LockPersonality aside, UMask and NoNewPrivileges. Namespaces, mounts and users are not made.
"""

import ctypes
import errno
import os
import socket
import subprocess
import sys

unit, *command = sys.argv[1:]
settings = {}
for line in open(unit):
    name, equals, value = line.strip().partition("=")
    if equals and not name.startswith(("#", "[")):
        settings.setdefault(name, []).append(value)


def calls(name):
    """The system calls of a set, and of the sets in it."""
    if not name.startswith("@"):
        return {name}
    lines = subprocess.check_output(["systemd-analyze", "syscall-filter", "--no-pager", name], text=True).splitlines()
    names = [line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#")]
    return set().union(*map(calls, names))


allowed = set()
for value in settings["SystemCallFilter"]:
    named = set().union(*map(calls, value.removeprefix("~").split()))
    allowed = allowed - named if value.startswith("~") else allowed | named
# systemd-analyze lists what systemd lets through in any case as @default; execve of the command itself is in it.
allowed |= calls("@default")

ALLOW, ERRNO = 0x7FFF0000, lambda number: 0x00050000 | number
MASKED_EQ, EQ, GT = 7, 4, 6
library = ctypes.CDLL("libseccomp.so.2")


class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


library.seccomp_init.restype = ctypes.c_void_p
library.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compare)]
library.seccomp_load.argtypes = [ctypes.c_void_p]


def load(context, rules):
    for action, call, *compares in rules:
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            continue  # a call that this machine does not have
        array = (Compare * len(compares))(*compares)
        code = library.seccomp_rule_add_array(context, action, number, len(compares), array)
        assert code == 0, f"{call}: {code}"
    code = library.seccomp_load(context)
    assert code == 0, f"the filter is not loaded: {code}"


denied = ERRNO(getattr(errno, settings["SystemCallErrorNumber"][-1]))
rules = []
if settings.get("MemoryDenyWriteExecute") == ["yes"]:
    write, execute = 2, 4
    rules += [
        (ERRNO(errno.EPERM), "mmap", Compare(2, MASKED_EQ, write | execute, write | execute)),
        (ERRNO(errno.EPERM), "mprotect", Compare(2, MASKED_EQ, execute, execute)),
        (ERRNO(errno.EPERM), "pkey_mprotect", Compare(2, MASKED_EQ, execute, execute)),
    ]
families = {getattr(socket, family) for family in " ".join(settings["RestrictAddressFamilies"]).split()}
rules += [(ERRNO(errno.EAFNOSUPPORT), "socket", Compare(0, EQ, family)) for family in range(max(families) + 40) if family not in families]
# Filters add up, and the strictest wins; the one with the list comes last, because loading it is a call too.
load(library.seccomp_init(ALLOW), rules)
os.umask(int(settings["UMask"][-1], 8))
load(library.seccomp_init(denied), [(ALLOW, call) for call in sorted(allowed | {"seccomp", "prctl"})])
os.execvp(command[0], command)
