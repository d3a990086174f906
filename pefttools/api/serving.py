"""A server in a thread of this process, for a notebook, a script or a test: `with pefttools.serve(run) as server: …`.

`pefttools serve` starts the same one in a process of its own, which is what a service needs.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pefttools import extras
from pefttools.api.trained_run import Precision, TrainedRun, reporter_for

if TYPE_CHECKING:
    import uvicorn


class Server:
    """A server that runs until `stop`, or to the end of a `with` block."""

    def __init__(self, url: str, server: uvicorn.Server, listener: Any) -> None:
        self.url = url
        """The address, as `http://127.0.0.1:8000`; `/docs` below it describes the requests."""
        self._server = server
        self._thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not server.started and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it once the accepted requests are answered; does nothing when it is stopped already."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.url!r}{'' if self._thread.is_alive() else ', stopped'})"


def serve(
    *runs: str | Path | TrainedRun, host: str = "127.0.0.1", port: int = 0, api_key: str | None = None,
    precision: Precision = "auto", progress: bool = True,
) -> Server:  # fmt: skip
    """Start a server for runs and exported folders, as `pefttools serve` does, in a thread of this process.

    Args:
        runs: requests name one by its folder where there are several.
        port: by default any free one; the server's `url` has it.
        api_key: requests must send it as `Authorization: Bearer KEY`.

    Raises:
        UserError: a folder is no run or artifact, the port is taken, or packages for serving are not installed.
    """
    from pefttools.errors import UserError

    extras.require("serve", extras.EXTRAS["serve"])
    if not runs:
        raise UserError("serve: name at least one run or exported folder")
    from pefttools.bases.loading import prepare_libraries
    from pefttools.serving import server
    from pefttools.serving.limits import Limits
    from pefttools.serving.models import Models

    limits, reporter = Limits(), reporter_for(progress)
    paths = [one.path if isinstance(one, TrainedRun) else Path(one) for one in runs]
    listener = server.bound(host, port)
    try:
        prepare_libraries()
        loaded = Models.load(paths, precision, reporter)
    except BaseException:
        listener.close()
        raise
    found = Server(
        f"http://{host}:{listener.getsockname()[1]}", server.configured(loaded, limits, api_key), listener
    )  # fmt: skip
    reporter.note(f"serving {', '.join(loaded.served)} on {found.url}; {found.url}/docs describes the requests")
    return found
