"""The table of tallies: what is added to api/core/rows/tables.py."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped

from api.core.rows.columns import Digest, Inputs, Leased, lease_rules, one_of
from api.core.rows.tables import Base


class Tally(Leased, Base):
    """How many boxes of each class a data set has."""

    __tablename__ = "tallies"
    leased_in = "counting"

    name: Mapped[str]
    inputs: Mapped[Inputs]
    """Of the data set: its index."""
    counts: Mapped[dict[str, Any] | None]
    """{class: boxes}"""
    listing_digest: Mapped[Digest | None]
    """One line an image."""
    error: Mapped[str | None]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "listing_digest"], ["blobs.project_id", "blobs.digest"]),
        CheckConstraint(one_of("state", ("counting", "counted", "failed")), "state"),
        CheckConstraint("(state = 'counted') = (counts IS NOT NULL)", "counted_has_counts"),
        CheckConstraint("(counts IS NULL) = (listing_digest IS NULL)", "counts_have_listing"),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", "failed_has_error"),
        CheckConstraint("(state <> 'counting') = (finished_at IS NOT NULL)", "ended_has_finished_at"),
        Index("ix_tallies_page", "project_id", "created_at", "id"),
        *lease_rules(__tablename__, leased_in),
    )
