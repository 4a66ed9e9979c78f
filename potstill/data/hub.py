"""Sets on the Hugging Face Hub: ``hf://user/name`` names one, as in :func:`potstill.load`.

A set is a dataset repository with ``distilled.safetensors`` in it.  The package ``huggingface_hub`` does the work: its
login and its cache are used, and HF_ENDPOINT says where another hub stands.
"""

import logging
import os
import re
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError

_NAMED = re.compile(r"^hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?$")
PATIENCE_SECONDS = 5.0  # until the hub answers
REASON = 300  # letters of what it says
log = logging.getLogger(__name__)
NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


def is_remote(path: str | Path) -> bool:
    """Whether a path names a set on the hub; as a :class:`Path` it has lost one of its slashes."""
    return str(path).startswith("hf:/")


def fetch(path: str | Path, file: str) -> Path:
    """A file of ``hf://user/name`` or ``hf://user/name@revision``, from the hub or from what was fetched before.

    Raises:
        PotstillError: there is no such set, it may not be read, or the hub is not reached and it was never fetched.
    """
    found = _NAMED.match(str(path))
    if found is None:
        raise PotstillError(f"{path}: no name of a set on the hub; write hf://user/name or hf://user/name@revision.")
    name, revision = found.groups()
    library = _library()
    try:
        fetched = library.hf_hub_download(
            name, file, repo_type="dataset", revision=revision, endpoint=_endpoint(), local_files_only=not answers(name)
        )
    except Exception as error:  # of many kinds, some of the library beneath
        raise PotstillError(
            f"hf://{name}: {file} cannot be fetched ({_reason(error)}); check the name and the network, and log in by "
            "`hf auth login` if it is private."
        ) from error
    return Path(fetched)


def push(name: str, contents: Mapping[str, bytes], private: bool, message: str) -> str:
    """Write files into the dataset repository ``user/name``, made if it is missing, as one commit; returns its address.

    Other files that lie there stay.

    Raises:
        PotstillError: the name is none, nobody is logged in, or the hub refuses or cannot be reached.
    """
    if not NAME.match(name):
        raise PotstillError(f"{name}: not the name of a repository; write user/name.")
    library = _library()
    api = library.HfApi(endpoint=_endpoint(), library_name="potstill")
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        operations = [library.CommitOperationAdd(path, content) for path, content in contents.items()]
        api.create_commit(name, operations, commit_message=message, repo_type="dataset")
    except Exception as error:
        raise PotstillError(
            f"{name}: cannot be pushed ({_reason(error)}); log in by `hf auth login` with a token that may write, and "
            "check that the name begins with yours."
        ) from error
    return f"{api.endpoint}/datasets/{name}"


def answers(name: str) -> bool:
    """Whether the hub answers at all, which the library finds out in half a minute of trying again."""
    library = _library()
    if library.constants.HF_HUB_OFFLINE:
        return False
    try:
        library.HfApi(endpoint=_endpoint()).dataset_info(name, timeout=PATIENCE_SECONDS)
    except library.errors.HfHubHTTPError:  # it answers: no such dataset, gated
        return True
    except Exception as error:  # of the library beneath, which has changed: the hub is not reached
        log.info("Hugging Face is not reached (%s): only what was fetched before is there", error)
        return False
    return True


def unreached(seconds: float) -> str | None:
    """Why the hub does not answer within so many seconds; None if it does."""
    try:
        library = _library()
    except PotstillError:
        return "the package huggingface_hub is missing"
    if library.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address, answer = _endpoint() or library.constants.ENDPOINT, ["no answer"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=seconds):
                answer.clear()
        except urllib.error.HTTPError:  # whatever it says, it is there
            answer.clear()
        except (OSError, ValueError) as error:
            answer[:] = [_reason(getattr(error, "reason", error))]

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name can take longer than any timeout
    asking.start()
    asking.join(seconds)
    return f"{address}: {answer[0]}" if answer else None


def _endpoint() -> str | None:
    """Where the hub is, as the environment says now; None for the library's own."""
    return os.environ.get("HF_ENDPOINT")


def _reason(error: object) -> str:
    """What the library says, in short, or what kind of error it is."""
    text = " ".join(str(error).split())
    return textwrap.shorten(text, REASON, placeholder=" ...").rstrip(".") or type(error).__name__


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise PotstillError("hf://: needs the package huggingface_hub; `pip install huggingface_hub`.") from error
    return huggingface_hub
