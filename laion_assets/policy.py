"""The base of every policy: a frozen value whose field names carry their units."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from laion_assets.formats.sealed import fingerprint


class Policy(BaseModel):
    """A frozen, keyword-only value that a user may set; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @property
    def fingerprint(self) -> str:
        """Digest of every field, for a recipe."""
        return fingerprint(self.model_dump(mode="json"))
