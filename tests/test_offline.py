"""Nothing is asked of another machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, os, pkgutil, sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(3)  # whoever would catch an exception

sys.addaudithook(hook)
import cl_diffusion

names = [module.name for module in pkgutil.walk_packages(cl_diffusion.__path__, "cl_diffusion.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_importing_every_module_opens_no_connection() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_a_connection_to_another_machine_fails_a_test() -> None:
    with socket.socket() as one, pytest.raises(pytest.fail.Exception, match="no network"):
        one.connect(("192.0.2.1", 80))  # an address that is nobody's (RFC 5737)


def test_a_connection_within_this_machine_does_not() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
