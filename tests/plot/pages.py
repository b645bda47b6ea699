"""What a written page holds compressed, as the browser unpacks it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any


def unpacked(page: str, kind: str) -> list[str]:
    """The texts of one kind, `library` or `frames`."""
    packed = re.findall(rf'<script type="application/gzip" class="{kind}">([^<]*)</script>', page)
    return [gzip.decompress(base64.b64decode(each)).decode() for each in packed]


def frames(page: str) -> list[dict[str, Any]]:
    """The moments of all steps."""
    return [frame for each in unpacked(page, "frames") for frame in json.loads(each)]
