"""Cases: how many, and how bytes are damaged."""

import os

from hypothesis import settings
from hypothesis import strategies as st

MANY = int(os.environ.get("POTSTILL_FUZZ", 0))
FEW = 20


def cases(share, few=FEW):
    """Settings for a test that gets this share of many cases, or a few; the few are the same each time."""
    return settings(
        max_examples=max(few, round(share * MANY)), derandomize=not MANY, deadline=None, database=None,
        print_blob=True,
    )  # fmt: skip


@st.composite
def damaged(draw, whole):
    """Bytes with something flipped, cut out, doubled, overwritten or cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        if not content:
            break
        at = draw(st.integers(0, len(content) - 1))
        length = draw(st.sampled_from([1, 2, 8, 64]))
        match draw(st.sampled_from(["flip", "cut", "double", "overwrite", "end"])):
            case "flip":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at : at + length]
            case "double":
                content[at:at] = content[at : at + length]
            case "overwrite":
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "end":
                del content[at:]
    return bytes(content)
