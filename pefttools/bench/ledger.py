"""Who runs which trial: claims in an Optuna storage, so that many workers on many machines run none twice.

A cell is an Optuna study, and a claim is a running trial in it that names what is run. Of several claims on the same
the lowest number holds. A claim of a process that is gone, or of a machine that has been silent for long, is
failed, and what it named is free again. Records travel with the claims, so that every machine has all of them.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
import uuid
import warnings
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

BEAT = 10.0
"""Seconds between signs of life."""
SILENCE = 90
"""Seconds without one after which another machine's claim is void."""


@dataclass(frozen=True)
class Claim:
    """The right to run a key."""

    study: str
    key: str
    number: int
    trial_id: int


class Ledger:
    """An Optuna storage by URL.

    Raises:
        UserError: it cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url, self.me, self.host = url, uuid.uuid4().hex, socket.gethostname()
        self.studies: dict[str, Study] = {}
        with self._reached(), _quiet():
            self.storage = self._opened(url)

    @staticmethod
    def _opened(url: str) -> RDBStorage:
        """Of workers that make the tables of a new database at once one fails, and finds them a moment later."""
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import IntegrityError, OperationalError

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
        self, name: str, key: str, learning_rate: float | None, seed: int, lower_is_better: bool = False
    ) -> Claim | None:
        """The right to run it; None when another has it, or has run it."""
        with self._reached(), _quiet() as optuna:
            study = self._study(name, lower_is_better)
            self._free(study)
            if self._holders(study, key):
                return None
            token = uuid.uuid4().hex
            about = {
                "key": key, "token": token, "seed": seed, "learning_rate": learning_rate,
                "host": self.host, "pid": os.getpid(), "worker": self.me,
            }  # fmt: skip
            values = {} if learning_rate is None else {"learning_rate": learning_rate}
            kinds: Mapping[str, Any] = {
                setting: optuna.distributions.FloatDistribution(1e-12, 1e6, log=True) for setting in values
            }
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=values, distributions=dict(kinds), user_attrs=about
                )
            )
            mine = next(t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("token") == token)
            self.storage.record_heartbeat(mine._trial_id)
            if self._holders(study, key)[0].number < mine.number:
                study.tell(mine.number, state=optuna.trial.TrialState.FAIL)
                return None
            return Claim(name, key, mine.number, mine._trial_id)

    def beat(self, claim: Claim) -> None:
        """A sign of life."""
        with self._reached():
            self.storage.record_heartbeat(claim.trial_id)

    def settle(self, claim: Claim, record: Mapping[str, Any]) -> None:
        """The trial has run; everyone may read its record."""
        with self._reached(), _quiet() as optuna:
            study, state = self._study(claim.study), optuna.trial.TrialState
            packed = base64.b85encode(zlib.compress(json.dumps(record).encode())).decode()
            self.storage.set_trial_user_attr(claim.trial_id, "record", packed)
            if record["status"] == "done":
                study.tell(claim.number, record["validation"][record["metric"]])
            else:
                self.storage.set_trial_user_attr(claim.trial_id, "reason", record["reason"])
                study.tell(claim.number, state=state.PRUNED)

    def release(self, claim: Claim) -> None:
        """It was not run to its end; it is free again."""
        with self._reached(), _quiet() as optuna:
            self._study(claim.study).tell(claim.number, state=optuna.trial.TrialState.FAIL)

    def record(self, name: str, key: str) -> dict[str, Any] | None:
        """What another worker made of it, once it has."""
        with self._reached(), _quiet():
            for trial in reversed(self._holders(self._study(name), key)):
                if packed := trial.user_attrs.get("record"):
                    return json.loads(zlib.decompress(base64.b85decode(packed)))
        return None

    def _study(self, name: str, lower_is_better: bool = False) -> Study:
        import optuna

        if name not in self.studies:
            self.studies[name] = optuna.create_study(
                storage=self.storage, study_name=name, load_if_exists=True,
                direction="minimize" if lower_is_better else "maximize",
            )  # fmt: skip
        return self.studies[name]

    def _holders(self, study: Study, key: str) -> list[FrozenTrial]:
        """The claims on a key that hold, the first first."""
        from optuna.trial import TrialState

        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        trials = study.get_trials(deepcopy=False, states=states)
        return sorted((t for t in trials if t.user_attrs.get("key") == key), key=lambda t: t.number)

    def _free(self, study: Study) -> None:
        """Fail the claims of who is gone."""
        import optuna
        from optuna.trial import TrialState

        optuna.storages.fail_stale_trials(study)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            about = trial.user_attrs
            if about.get("host") == self.host and about.get("worker") != self.me and not _alive(about.get("pid")):
                study.tell(trial.number, state=TrialState.FAIL)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        from sqlalchemy.exc import ArgumentError, SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, ArgumentError, ImportError) as error:
            said = str(error).strip().splitlines()[0]
            raise UserError(f"--storage: {self.url} cannot be reached: {said}") from error


def sqlite(file: Path) -> str:
    """The URL of a database in a file."""
    return f"sqlite:///{file.absolute()}"


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna without its log, and for good without its warnings that heartbeats may change.

    `catch_warnings` would put back what another thread has just set.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    yield optuna


def _alive(pid: Any) -> bool:
    import psutil

    return isinstance(pid, int) and psutil.pid_exists(pid)
