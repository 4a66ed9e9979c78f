"""What is slow to make is kept: decoded images by what their files were, whitening by what it was fitted on."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from potstill import files
from potstill.errors import PotstillError

Made = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and a header."""


def cache_folder() -> Path:
    """Where decoded arrays, whitening and control results are kept: $POTSTILL_CACHE, or ~/.cache/potstill."""
    return Path(os.environ.get("POTSTILL_CACHE", "~/.cache/potstill")).expanduser()


def kept(kind: str, identity: Any, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, or what it gave before for the same identity."""
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    path = cache_folder() / kind / f"{key}.safetensors"
    try:
        return files.load(path, kind)
    except PotstillError:
        tensors, header = make()
        try:
            files.save(path, kind, tensors, header)
        except (PotstillError, OSError) as error:  # a convenience only
            warnings.warn(f"the {kind} is not kept for the next time: {error}", stacklevel=2)
        return tensors, header
