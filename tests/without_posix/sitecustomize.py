"""Makes an interpreter look to pefttools like one on Windows: without POSIX modules, functions, signals and fork.

Python imports this file at its start if its folder is on PYTHONPATH, also in processes that the first one starts.
Libraries choose their code by `sys.platform`, so modules, functions and signals are hidden from pefttools alone; start
methods of multiprocessing other than `spawn` are removed for all.
"""

import builtins
import multiprocessing
import os
import signal
import sys
from multiprocessing import context  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix")
HIDDEN = {
    "os": {
        *("fork", "forkpty", "wait", "waitpid", "kill", "killpg", "setsid", "getpgid", "getuid", "geteuid", "getgid"),
        *("uname", "nice", "mkfifo", "chown", "sched_getaffinity", "sched_setaffinity", "sysconf", "getloadavg"),
        *("statvfs", "pread", "pwrite", "posix_fallocate", "O_DIRECTORY", "O_NONBLOCK"),
    },
    "signal": {
        *("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGXFSZ", "SIGXCPU"),
        *("SIGTSTP", "SIGCONT", "SIGSTOP", "setitimer", "ITIMER_REAL", "alarm", "pause", "pthread_sigmask", "sigwait"),
    },
}
"""Module -> names that it has on POSIX systems only."""
METHODS = ("fork", "forkserver")


class Hiding(ModuleType):
    """A module whose POSIX names pefttools does not find."""

    def __getattribute__(self, name: str) -> object:
        module = super().__getattribute__("__name__")
        if name in HIDDEN[module] and _is_ours(sys._getframe(1).f_globals):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return super().__getattribute__(name)


def _is_ours(variables: object) -> bool:
    return isinstance(variables, dict) and str(variables.get("__name__")).partition(".")[0] == "pefttools"


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if name in MODULES and _is_ours(globals):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _plain_import(name, globals, locals, fromlist, level)


_plain_import = builtins.__import__
builtins.__import__ = _import
for _module in (os, signal):
    _module.__class__ = Hiding
for _method in METHODS:
    del context._concrete_contexts[_method]  # type: ignore[attr-defined]
sys.modules["multiprocessing.forkserver"] = None  # type: ignore[assignment]
multiprocessing.get_all_start_methods = lambda: ["spawn"]
context._default_context._default_context = context._concrete_contexts["spawn"]  # type: ignore[attr-defined]
