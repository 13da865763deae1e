"""Names for what is kept by what decides it."""

import hashlib
import json
from typing import Any


def digest(values: Any) -> str:
    """Hexadecimal, 16 characters, of plain ``values``; others count as they are written."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
