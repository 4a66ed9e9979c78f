"""Methods as they are written in one word: stages joined by "+", what is changed in a stage after its colon.

"datm:iterations=100,start_epochs=(8,11)+rat-bptt"
"""

import re


def stages_of(text: str) -> list[tuple[str, list[str]]]:
    """Each stage's name and its changes, as they were written.

    Example:
        >>> stages_of("datm:lr_images=1e+2,start_epochs=(8,11)+rat-bptt")
        [('datm', ['lr_images=1e+2', 'start_epochs=(8,11)']), ('rat-bptt', [])]
    """
    stages = (stage.partition(":") for stage in re.split(r"\+(?=[a-z])", text))  # not the sign of 1e+2
    return [(name, _changes(told)) for name, _, told in stages]


def _changes(text: str) -> list[str]:
    """Parts between commas, but for those inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]
