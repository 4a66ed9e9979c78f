"""Our docstrings as mkdocstrings reads them: names of objects as code, examples as examples.  A Griffe extension."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":\w+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")  # :func:`distill`, :meth:`words <path>`
EXAMPLE = re.compile(r"^Example:$", re.M)  # Griffe knows the plural alone


class Docstrings(Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)
