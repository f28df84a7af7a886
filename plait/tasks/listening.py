"""Where a model is served, and who may reach it."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

from plait import spec
from plait.errors import UserError


def listen(folder: Path, host: str, port: int, name: str, device: spec.Device) -> None:
    """Serve a model until interrupted. The secret comes from the environment, which other users of the machine do not see."""
    secret = os.environ.get("PLAIT_SECRET")
    check_address(host, secret)
    try:
        import uvicorn

        from plait.tasks.serve import application
    except ImportError as error:
        raise UserError(f"plait serve needs {error.name}: pip install 'plait[serve]'") from None
    from plait.tasks.trained import load

    app = application(load(folder, device), name, secret)
    with socket.create_server((host, port)) as listening:
        print(f"http://{host}:{listening.getsockname()[1]}/v1  model {name}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def check_address(host: str, secret: str | None) -> None:
    """Raises UserError where others than this machine could ask, and nothing keeps strangers out."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not secret:
        raise UserError(f"--host {host}: is open to other machines, and no secret is set; set PLAIT_SECRET, or serve on 127.0.0.1")
