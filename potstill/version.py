"""The version: written here alone.  The package's metadata is made from it, and a release's tag is v followed by it."""

VERSION = "0.2.0"
