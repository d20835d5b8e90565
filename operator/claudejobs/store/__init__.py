"""The mirror of attempts in PostgreSQL, or in a SQLite file.

``Store`` is what the rest of the operator uses; it never lets a slow or absent database reach its callers.
"""

from .config import StoreSettings
from .errors import SchemaConflictError, StoreConfigError, StoreError, StoreUnavailableError
from .merge import merge
from .schema import upgrade
from .store import LastLog, OpenAttempt, Store, StoreHealth

__all__ = [
    "LastLog",
    "OpenAttempt",
    "SchemaConflictError",
    "Store",
    "StoreConfigError",
    "StoreError",
    "StoreHealth",
    "StoreSettings",
    "StoreUnavailableError",
    "merge",
    "upgrade",
]
