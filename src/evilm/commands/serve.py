"""The command that serves the page.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import os
import secrets
import socket
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from evilm.commands.console import say
from evilm.errors import ConfigError, DependencyError


def serve(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index; the page can make a new one.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model [default: that of the index, or the bundled one].")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; all but loopback need --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    root: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Folder whose subfolders may be scanned; repeatable [default: home]."),
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Training runs to show; repeatable [default: runs].")
    ] = None,
    token: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Token that each request must carry; `new` makes one.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="Further host name of this server; repeatable.")
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, max=4096, help="Largest upload in MB.")] = 64,
) -> None:  # fmt: skip
    """Search, watch and ask in the browser."""
    # Read when NumPy is imported. A matrix product that takes all cores delays the answers that are being sent.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    try:
        import uvicorn

        from evilm.server.app import ServerConfig, create_app
    except ModuleNotFoundError as error:
        raise DependencyError(f"serve needs {error.name}: pip install 'evilm[serve]'") from None
    from evilm.demo import clips
    from evilm.server.security import LOOPBACK, Access

    local = host in LOOPBACK
    if not local and token is None:
        raise ConfigError(f"--host {host} is reachable from other machines: add --token new, or keep 127.0.0.1")
    if token == "new":  # noqa: S105, a word of the command line
        token = secrets.token_urlsafe(18)
    if token is not None and len(token) < 12:
        raise ConfigError("--token: 12 characters at least; `--token new` makes one")
    hosts = LOOPBACK | {each.lower() for each in name or []} | {host.lower()}
    config = ServerConfig(
        index=index.expanduser(), model=model, roots=tuple(path.expanduser() for path in root or [Path.home()]),
        runs=tuple(runs or [Path("runs")]), samples=clips.folder(),
        access=Access(hosts=frozenset(hosts), token=token), max_upload=max_upload << 20,
    )  # fmt: skip
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {reason}; name another port") from None
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/" + (f"?token={token}" if token else "")
    say(f"E-ViLM answers at {address}  (Ctrl-C stops it)")
    app = create_app(config)
    settings = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=10, timeout_keep_alive=15,
        server_header=False, limit_concurrency=1000, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    handle_exit = server.handle_exit

    def stop(sig: int, frame: FrameType | None) -> None:
        app.state.services.events.close()  # open event streams would hold up the end
        handle_exit(sig, frame)

    server.handle_exit = stop
    server.run(sockets=[listener])
