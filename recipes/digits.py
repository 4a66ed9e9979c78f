"""The embedded digits at 1, 10 and 50 images per class: what `potstill run --ipc N` does, with a record each.

    python recipes/digits.py --ipc 1        # also 10 and 50

Should give at least 87 % at one image per class, where random images give about 70 %, and 97.5 % at ten.
"""

import sys

from common import cook

from potstill.config import default

if __name__ == "__main__":
    ipc = int(sys.argv.pop(sys.argv.index("--ipc") + 1)) if "--ipc" in sys.argv else 1
    sys.argv = [argument for argument in sys.argv if argument != "--ipc"]
    cook(f"digits-ipc{ipc}", default("digits", ipc), __doc__ or "")
