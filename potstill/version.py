"""The version, asked of the installed package."""

from importlib import metadata

try:
    VERSION = metadata.version("potstill")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0.2.0"
