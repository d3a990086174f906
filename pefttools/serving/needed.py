"""The packages that a server needs besides those of `pefttools` itself."""

from __future__ import annotations

import importlib.util

from pefttools.errors import UserError

NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client")


def refuse_unless_installed() -> None:
    """Raises UserError when one of them is missing."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve: needs {', '.join(missing)}; install it with `pip install pefttools[serve]`")
