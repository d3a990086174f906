"""Packages that only some parts of pefttools need, and the extras that install them.

`pip install pefttools` installs what training, predicting, scoring and exporting need. A part that needs more calls
`require` before it starts to work, so that no work is lost; the message names the extra.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from pefttools.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "charts": ("altair", "vl_convert"),
    "explain": ("captum",),
    "gguf": ("sentencepiece", "xllamacpp"),
    "liger": ("liger_kernel",),
    "metrics": ("rouge_score", "sacrebleu", "seqeval"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "postgresql": ("psycopg",),
    "quantized": ("bitsandbytes",),
    "serve": ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client"),
    "tensorboard": ("tensorboard",),
    "tune": ("optuna", "altair", "vl_convert"),
}
"""Extra -> the modules that it installs. An extra that includes another comes after it."""


def missing(modules: Iterable[str]) -> list[str]:
    """Those of the modules that are not installed."""
    return [module for module in modules if find_spec(module) is None]


def command(modules: Iterable[str]) -> str:
    """The command that installs these modules."""
    wanted = {*modules}
    if extra := next((extra for extra, contained in EXTRAS.items() if wanted <= {*contained}), None):
        return f'pip install "pefttools[{extra}]"'
    known = {module: extra for extra, contained in reversed(EXTRAS.items()) for module in contained}
    extras = sorted({known[module] for module in wanted if module in known})
    others = sorted(_package(module) for module in wanted if module not in known)  # of plug-ins
    return " ".join(["pip install", *([f'"pefttools[{",".join(extras)}]"'] if extras else []), *others])


def problem(what: str, modules: Iterable[str]) -> str | None:
    """The message if some of the modules are not installed, else None.

    Args:
        what: the command, option or setting that needs them, as the user writes it.
    """
    if not (lacking := missing(modules)):
        return None
    *first, last = map(_package, lacking)
    names = f"{', '.join(first)} and {last}" if first else last
    return (
        f"{what}: needs {names}, which {'is' if len(lacking) == 1 else 'are'} not installed; run `{command(lacking)}`"
    )


def require(what: str, modules: Iterable[str]) -> None:
    """Raises UserError, with `problem`'s message, unless all of the modules are installed."""
    if found := problem(what, modules):
        raise UserError(found)


def failed_import(error: ModuleNotFoundError) -> str | None:
    """The message for an import that failed because an extra is not installed; None if it failed otherwise."""
    module = (error.name or "").partition(".")[0]
    if not any(module in contained for contained in EXTRAS.values()):
        return None
    return f"{_package(module)} is needed here, but it is not installed; run `{command([module])}`"


def _package(module: str) -> str:
    return module.replace("_", "-")
