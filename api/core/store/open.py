"""The store that the settings name, and the room on the disks of this host."""

from __future__ import annotations

import importlib.util

from api.core.errors import DriverMissing
from api.core.settings import Settings
from api.core.store.local import LocalStore
from api.core.store.names import BlobStore
from api.core.store.room import Room


def open_store(settings: Settings, patience_s: float = 5.0) -> BlobStore:
    """The store that the settings name. patience_s: how long one call tries again while an S3 server is away.

    Raises DriverMissing. Connects to nothing.
    """
    if settings.store_url is None:
        return LocalStore(settings.blobs)
    if importlib.util.find_spec("obstore") is None:
        raise DriverMissing("a store on S3 needs its client: pip install 'fgd-service[s3]'")
    from api.core.store.s3 import S3Store

    return S3Store.of(settings, patience_s)


def room_of(settings: Settings) -> Room:
    """Where the API's host grows."""
    folders = [settings.home, settings.uploads] + ([settings.blobs] if settings.store_url is None else [])
    return Room(folders, settings.min_free_bytes)
