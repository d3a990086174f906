"""Messages that several processes of a launch have, and that only one of them prints."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta

SECONDS = 5
"""How long a process waits for the launcher."""


def is_first(message: str) -> bool:
    """Whether this process is to print a message about an error.

    The launcher counts who has the message, so that it appears once on every machine, even if only one process has it
    or the first process has died. A launcher that cannot count leaves it to the first process of the machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return os.environ.get("LOCAL_RANK", "0") == "0"
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    place = f"{os.environ.get('GROUP_RANK', '0')} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    key = f"pefttools {place} {hashlib.sha256(message.encode()).hexdigest()}"
    try:
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=SECONDS)).add(key, 1) == 1
    except RuntimeError:  # the launcher has ended
        return os.environ.get("LOCAL_RANK", "0") == "0"
