"""The model API's key, from a mounted Secret."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from .refusal import RefusedError

logger = logging.getLogger(__name__)


class KeyFile:
    """Reads the key again when the file has changed: a Secret is renewed without a restart."""

    def __init__(self, path: Path, scheme: Literal["x-api-key", "bearer"]) -> None:
        self._path = path
        self._scheme = scheme
        self._version: tuple[int, int, int] | None = None
        self._key = ""

    def headers(self) -> dict[str, str]:
        """What authorizes a request.

        Raises:
            RefusedError: there is no key. A 503, because the job cannot help it and the operator of the gateway can.
        """
        try:
            found = self._path.stat()
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
            if version != self._version:
                self._key, self._version = self._read(), version
        except OSError as error:
            # A file that is away for a moment does not take away the key that was read from it.
            if not self._key:
                raise self._missing(f"{self._path}: {error.strerror}") from error
            logger.warning("the key is kept, as its file cannot be read: %s: %s", self._path, error.strerror)
        if not self._key:
            raise self._missing(f"{self._path} is empty")
        return {"x-api-key": self._key} if self._scheme == "x-api-key" else {"Authorization": f"Bearer {self._key}"}

    def _read(self) -> str:
        key = self._path.read_bytes().decode("ascii", "replace").strip()
        if not key.isprintable() or "\ufffd" in key:
            logger.error("the key in %s has characters that no key has; it is not used", self._path)
            return ""
        logger.info("the model API's key was read from %s", self._path)
        return key

    def _missing(self, why: str) -> RefusedError:
        logger.error("there is no key for the model API: %s", why)
        return RefusedError(503, "api_error", "no_key", "there is no key for the model API", 5)
