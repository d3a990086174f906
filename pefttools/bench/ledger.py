"""Claims on trials in an Optuna storage, so that several workers on several machines run no trial twice.

A cell is an Optuna study, and a claim is a running Optuna trial in it with the key of our trial. If there are several
claims on a key, the one with the lowest number is valid. A claim whose process has ended, or whose machine has sent no
heartbeat for long, is marked as failed, and its key can be claimed again. Records are stored with the claims, so that
every machine has all of them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import time
import uuid
import warnings
import zlib
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import extras
from pefttools.bench import pruning
from pefttools.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

BEAT = 10.0
"""Seconds between heartbeats."""
SILENCE = 90
"""Seconds without a heartbeat after which another machine's claim is no longer valid."""


@dataclass(frozen=True)
class Claim:
    """The right to run a key."""

    study: str
    key: str
    number: int
    trial_id: int


class Ledger:
    """Claims and records in the Optuna storage with this URL.

    Raises:
        UserError: the storage cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url, self.me, self.host = url, uuid.uuid4().hex, socket.gethostname()
        self.studies: dict[str, Study] = {}
        with self._connected(), _quiet():
            self.storage = self._opened(url)

    @staticmethod
    def _opened(url: str) -> RDBStorage:
        """Open the storage. Retries, because workers that create its tables at the same time make each other fail."""
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import IntegrityError, OperationalError

        if url.startswith("postgresql://") and find_spec("psycopg2") is None:  # SQLAlchemy's default, an older driver
            url = url.replace("://", "+psycopg://", 1)
        arguments = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        for last in (False, False, True):
            try:
                return RDBStorage(url, engine_kwargs=arguments, heartbeat_interval=int(BEAT), grace_period=SILENCE)
            except (OperationalError, IntegrityError):
                if last:
                    raise
                time.sleep(0.5)
        raise AssertionError("unreachable")

    def claim(
        self, name: str, key: str, learning_rate: float | None, seed: int, lower_is_better: bool = False,
        params: Mapping[str, tuple[Any, BaseDistribution]] = {},
    ) -> Claim | None:  # fmt: skip
        """Claim a trial; returns None when another worker has claimed or finished it.

        Args:
            params: what a search varies, by name, with its distributions.
        """
        with self._connected(), _quiet() as optuna:
            study = self._study(name, lower_is_better)
            self._free(study)
            if self._holders(study, key):
                return None
            token = uuid.uuid4().hex
            about = {
                "key": key, "token": token, "seed": seed, "learning_rate": learning_rate,
                "host": self.host, "pid": os.getpid(), "worker": self.me,
            }  # fmt: skip
            if learning_rate is not None:
                rates = optuna.distributions.FloatDistribution(1e-12, 1e6, log=True)
                params = {"learning_rate": (learning_rate, rates), **params}
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING,
                    params={setting: value for setting, (value, _) in params.items()},
                    distributions={setting: kind for setting, (_, kind) in params.items()},
                    user_attrs=about,
                )
            )
            mine = next(t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("token") == token)
            self.storage.record_heartbeat(mine._trial_id)
            if self._holders(study, key)[0].number < mine.number:
                study.tell(mine.number, state=optuna.trial.TrialState.FAIL)
                return None
            return Claim(name, key, mine.number, mine._trial_id)

    def beat(self, claim: Claim) -> None:
        """Send a heartbeat."""
        with self._connected():
            self.storage.record_heartbeat(claim.trial_id)

    def settle(self, claim: Claim, record: Mapping[str, Any]) -> None:
        """Finish the claim of a trial and store its record for all workers.

        If this machine was so slow that another worker has taken the trial over, that worker stores its record.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        with self._connected(), suppress(UpdateFinishedTrialError), _quiet() as optuna:
            study, state = self._study(claim.study), optuna.trial.TrialState
            packed = base64.b85encode(zlib.compress(json.dumps(record).encode())).decode()
            self.storage.set_trial_user_attr(claim.trial_id, "record", packed)
            for place, value in pruning.values(record.get("curve") or ()).items():
                self.storage.set_trial_intermediate_value(claim.trial_id, place, value)
            if record["status"] == "done":
                study.tell(claim.number, record["validation"][record["metric"]])
            else:
                if record["status"] == "failed":
                    self.storage.set_trial_user_attr(claim.trial_id, "reason", record["reason"])
                study.tell(claim.number, state=state.PRUNED)

    def release(self, claim: Claim) -> None:
        """Give up the claim of a trial that did not finish, so that it can be claimed again."""
        with self._connected(), _quiet() as optuna:
            self._study(claim.study).tell(claim.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def record(self, name: str, key: str) -> dict[str, Any] | None:
        """The record of a trial that another worker has finished, or None."""
        with self._connected(), _quiet():
            for trial in reversed(self._holders(self._study(name), key)):
                if packed := trial.user_attrs.get("record"):
                    return json.loads(zlib.decompress(base64.b85decode(packed)))
        return None

    def close(self, name: str, number: int, lower_is_better: bool = False) -> None:
        """Let no worker begin trials of a search from this number on; of several numbers, the smallest counts."""
        with self._connected(), _quiet():
            self._study(name, lower_is_better).set_user_attr(f"closed {self.me}", number)

    def closed(self, name: str, lower_is_better: bool = False) -> int | None:
        """The number from which on no trials of a search begin; None if it is not closed."""
        with self._connected(), _quiet():
            found = self._study(name, lower_is_better).user_attrs
        return min((value for key, value in found.items() if key.startswith("closed ")), default=None)

    def _study(self, name: str, lower_is_better: bool = False) -> Study:
        import optuna

        if name not in self.studies:
            self.studies[name] = optuna.create_study(
                storage=self.storage, study_name=name, load_if_exists=True,
                direction="minimize" if lower_is_better else "maximize",
            )  # fmt: skip
        return self.studies[name]

    def _holders(self, study: Study, key: str) -> list[FrozenTrial]:
        """The claims on a key, the valid one first."""
        from optuna.trial import TrialState

        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        trials = study.get_trials(deepcopy=False, states=states)
        return sorted((t for t in trials if t.user_attrs.get("key") == key), key=lambda t: t.number)

    def _free(self, study: Study) -> None:
        """Mark the claims of processes that have ended as failed."""
        import optuna
        from optuna.trial import TrialState

        optuna.storages.fail_stale_trials(study)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            about = trial.user_attrs
            if about.get("host") == self.host and about.get("worker") != self.me and not _alive(about.get("pid")):
                study.tell(trial.number, state=TrialState.FAIL)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, ArgumentError, ImportError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            if isinstance(error, ImportError) and self.url.startswith("postgresql"):
                reason += f"; run `{extras.command(['psycopg'])}`"
            raise UserError(f"--storage: {without_password(self.url)} cannot be reached: {reason}") from error


def without_password(url: str) -> str:
    """A database's URL with stars instead of the password."""
    return re.sub(r"(://[^/@]*?):[^/]*@", r"\1:***@", url)


def sqlite(file: Path) -> str:
    """The URL of an SQLite database in a file."""
    return f"sqlite:///{file.absolute()}"


@contextmanager
def _quiet() -> Iterator[Any]:
    """Silence Optuna's log and, permanently, its warnings that heartbeats are experimental.

    `catch_warnings` would undo the settings of another thread.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    yield optuna


def _alive(pid: Any) -> bool:
    import psutil

    return isinstance(pid, int) and psutil.pid_exists(pid)
