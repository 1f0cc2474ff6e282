"""The version of the package, which pyproject.toml states too; a test holds them equal."""

VERSION = "0.1.0"
