"""The command that serves the page.

Typer reads the annotations at run time, so they are evaluated here and not postponed.
"""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from evilm.commands.console import say
from evilm.errors import ConfigError, DependencyError


def serve(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index; a new one is made by the page.")],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Model [default: the index's own, else the bundled one].")] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; another than loopback needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    root: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="Folder whose subfolders may be scanned; may be repeated [default: your home].")] = None,
    runs: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="Folder with training runs to show; may be repeated [default: runs].")] = None,
    token: Annotated[str | None, typer.Option(metavar="TEXT", help="Token that each request must carry; `new` makes one.")] = None,
    name: Annotated[list[str] | None, typer.Option(metavar="HOST", help="Further host name the server answers to; may be repeated.")] = None,
    max_upload: Annotated[int, typer.Option(min=1, max=4096, help="Largest upload in MB.")] = 64,
) -> None:  # fmt: skip
    """Search, watch and ask in the browser."""
    try:
        import uvicorn

        from evilm.server.app import ServerConfig, create_app
    except ModuleNotFoundError as error:
        raise DependencyError(f"serve needs {error.name}: pip install 'evilm[serve]'") from None
    from evilm.server.security import LOOPBACK, Access

    local = host in LOOPBACK
    if not local and token is None:
        raise ConfigError(f"--host {host} is reachable from other machines: add --token new, or keep 127.0.0.1")
    if token == "new":  # noqa: S105, a word of the command line
        token = secrets.token_urlsafe(18)
    if token is not None and len(token) < 12:
        raise ConfigError("--token: 12 characters at least; `--token new` makes one")
    hosts = (
        LOOPBACK | {each.lower() for each in name or []} | ({host.lower()} if host not in ("0.0.0.0", "::") else set())
    )  # noqa: S104
    samples = Path(__file__).parents[1] / "demo" / "clips"
    config = ServerConfig(
        index=index.expanduser(), model=model, roots=tuple(path.expanduser() for path in root or [Path.home()]),
        runs=tuple(runs or [Path("runs")]), samples=samples if samples.is_dir() else None,
        access=Access(hosts=frozenset(hosts), token=token), max_upload=max_upload << 20,
    )  # fmt: skip
    server = uvicorn.Server(
        uvicorn.Config(create_app(config), host=host, port=port, log_level="warning", timeout_graceful_shutdown=10,
                       timeout_keep_alive=15, server_header=False, limit_concurrency=1000)
    )  # fmt: skip
    shown = "127.0.0.1" if local else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{{port}}/" + (f"?token={token}" if token else "")
    _run(server, address)


def _run(server: object, address: str) -> None:
    """Serve until Ctrl-C or SIGTERM; print the address when the port is open."""
    import asyncio

    async def main() -> None:
        task = asyncio.create_task(server.serve())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
        while not server.started and not task.done():  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
            await asyncio.sleep(0.02)
        if not task.done():
            port = server.servers[0].sockets[0].getsockname()[1]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
            say(f"E-ViLM answers at {address.format(port=port)}  (Ctrl-C stops it)")
        await task

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except SystemExit:
        raise ConfigError(f"{address}: the port cannot be opened; name another with --port") from None
