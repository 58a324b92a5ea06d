"""What a frozen teacher showed of an image, kept for the epochs to come. Knows no losses, steps or specs.

A training with the cache ends with the bytes of one without it. What makes it so:

- An entry belongs to one image, flipped in one way, resized and padded to one size: to exactly these pixels.
- Maps are kept as they were computed; a bf16 trunk's in bf16, where that loses no bit.
- All batches of a training have as many images, so a map comes out of the same kernels wherever its image stands. That
  neighbours and place in the batch change no bit is no promise of any library, so it is tried: before maps of a batch
  are first read, the whole batch is computed all the same, once as it is and once turned by one place, and compared
  bit by bit with each other and with what was kept.
- Where only some maps of a batch are kept, the teacher runs on the other images alone, if that was tried and made no
  difference either; else on all of them. Each number of images is tried once at each padded size. A single image takes
  another one along: oneDNN's kernels for one image sum in another order than those for two and more, which agree
  (torch 2.14.1, AVX512).

It fills until it is full and forgets nothing: an epoch takes every image once, in a new order, so whatever would be
dropped for another is needed just as soon.

The entries lie in one file without a name: it is gone with the process, however that ends, and the next attempt fills
it again. It is read and written by calls and not mapped into memory, where a full disk would be a fatal signal, and
where pages of the file would count as the process's memory.
"""

# N images, C channels, H x W cells of a level

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fgd.engine.distill import Teacher
from fgd.events import Emit, Note
from fgd.types import Batch, View

KEEP_FREE = 2 * 2**30
"""Bytes of the disk that are left for all else, at least."""
TOGETHER = 2
"""Images that the teacher runs on at least, where a batch has as many."""
ALIGNED = 8
"""Bytes; where a map begins, so that it can be read as any type."""

Key = tuple[int, tuple[bool, bool], tuple[int, int], tuple[int, int]]
"""Image id, (horizontal, vertical) flips, size after resizing, padded size."""
Layout = tuple[tuple[int, torch.dtype, torch.Size], ...]
"""Of each level: offset in its entry, type, C x H x W."""
Maps = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Where the maps of one image lie in the file, one behind the other."""

    begin: int
    size: int
    maps: Layout


class TeacherCache:
    """Gives the maps that the teacher would give, and computes those that it does not have."""

    def __init__(
        self, teacher: Teacher, folder: Path, *, max_bytes: int, keep_free: int = KEEP_FREE, emit: Emit
    ) -> None:
        """folder: on whose disk the file lies. keep_free: bytes that stay free there."""
        self.teacher, self.emit = teacher, emit
        self.file = CacheFile(folder, max_bytes, keep_free)
        self.entries: dict[Key, CacheEntry] = {}
        self.grows = True
        self.same: dict[tuple[int, tuple[int, int]], bool] = {}
        """(images computed together, their padded size) -> whether they come out as in the whole batch."""
        self.warned = False
        """That somewhere they do not; once is enough."""
        self.seen, self.read = 0, 0
        """Images, and those of them whose maps were read."""
        self.told_seen, self.told_read = 0, 0

    def close(self) -> None:
        """The file is gone; the figures stay."""
        self.file.file.close()

    def view(self, batch: Batch) -> View:
        """As `Teacher.view` where no method takes what its head says of its own maps, which are not kept."""
        return View(self.shared_features(batch), towers=self.teacher.towers())

    def shared_features(self, batch: Batch) -> Maps:
        """As `Teacher.shared_features`, bit by bit."""
        keys = keys_of(batch)
        held = [n for n, key in enumerate(keys) if key in self.entries]
        missing = [n for n in range(len(keys)) if n not in held]
        computed = missing + held[: max(0, TOGETHER - len(missing))] if missing else []
        self.seen += len(keys)
        tried = self.same.get((len(computed), batch.padded_size))
        if len(computed) < len(keys) and tried:
            try:
                maps = self.assembled(batch, keys, held, computed)
                self.read += len(keys) - len(computed)
                return maps
            except OSError as error:
                self.give_up(f"it cannot be read: {error.strerror}")
        whole = self.teacher.shared_features(batch)
        if len(computed) < len(keys) and tried is None:
            self.same[len(computed), batch.padded_size] = self.makes_no_difference(batch, whole, keys, len(computed))
        self.keep((keys[n], [map_NCHW[n] for map_NCHW in whole.values()]) for n in missing)
        return whole

    def assembled(self, batch: Batch, keys: Sequence[Key], held: Sequence[int], computed: Sequence[int]) -> Maps:
        """What is kept, and the rest computed. Raises OSError where the file cannot be read."""
        device = batch.images_NCHW.device
        shapes = [shape for _, _, shape in self.entries[keys[held[0]]].maps]
        maps = {
            level: torch.empty((len(keys), *shape), device=device)
            for level, shape in zip(self.teacher.shared, shapes, strict=True)
        }
        for n in set(held).difference(computed):
            self.file.read_into([map_NCHW[n] for map_NCHW in maps.values()], self.entries[keys[n]])
        if computed:
            alone = self.teacher.shared_features(part(batch, computed))
            for level, map_NCHW in maps.items():
                map_NCHW[computed] = alone[level]
            self.keep((keys[n], [map_NCHW[n] for map_NCHW in maps.values()]) for n in computed)
        return maps

    def keep(self, images: Iterator[tuple[Key, list[Tensor]]]) -> None:
        for key, maps in images:
            if not self.grows or key in self.entries:  # one image twice: it stood in for one that does not decode
                continue
            try:
                self.entries[key] = self.file.append(self.narrowed(maps))
            except CacheFull as full:
                self.grows = False
                self.tell("teacher_cache_full", f"{full}; the teacher runs for all other images")
            except OSError as error:
                self.grows = False
                message = f"stops growing: {error.strerror}; the teacher runs for all other images"
                self.tell("teacher_cache_stopped", message, warning=True)

    def narrowed(self, maps: list[Tensor]) -> list[Tensor]:
        """What bf16 layers computed back in bf16. The levels that stay float32 in a bf16 teacher stay so here."""
        if self.teacher.dtype != torch.bfloat16:
            return maps
        halves = [map_CHW.bfloat16() for map_CHW in maps]
        return [half if equal(half.float(), map_CHW) else map_CHW for half, map_CHW in zip(halves, maps, strict=True)]

    def makes_no_difference(self, batch: Batch, whole: Maps, keys: Sequence[Key], count: int) -> bool:
        """Whether maps that were kept, turned batches and batches of `count` all have the bits of the whole batch."""
        turned = [*range(1, len(keys)), 0]
        size = batch.padded_size
        if (len(keys), size) not in self.same:
            self.same[len(keys), size] = self.equal_alone(batch, whole, turned)
        same = self.same[len(keys), size] and (count == 0 or self.equal_alone(batch, whole, turned[:count]))
        try:
            same = same and all(
                equal(kept, map_NCHW[n])
                for n, key in enumerate(keys)
                if key in self.entries
                for kept, map_NCHW in zip(self.kept(key, whole), whole.values(), strict=True)
            )
        except OSError as error:
            self.give_up(f"it cannot be read: {error.strerror}")
            return False
        if not same and not self.warned:
            self.warned = True
            message = (
                f"the teacher's maps of {len(keys)} images of {size[0]}x{size[1]} px depend on their neighbours"
                if not self.same[len(keys), size]
                else f"{count} images of {size[0]}x{size[1]} px have other maps alone than in a batch of {len(keys)}"
            )
            self.tell("teacher_cache_inexact", f"{message}: such batches are computed as a whole", warning=True)
        return same

    def equal_alone(self, batch: Batch, whole: Maps, chosen: Sequence[int]) -> bool:
        """Whether these images have the same maps in a batch of their own, in that order."""
        alone = self.teacher.shared_features(part(batch, chosen))
        return all(equal(alone[level], map_NCHW[chosen]) for level, map_NCHW in whole.items())

    def kept(self, key: Key, like: Maps) -> list[Tensor]:
        maps = [torch.empty_like(map_NCHW[0]) for map_NCHW in like.values()]
        self.file.read_into(maps, self.entries[key])
        return maps

    def give_up(self, why: str) -> None:
        self.entries.clear()
        self.grows = False
        self.tell("teacher_cache_stopped", f"is no longer used: {why}; the teacher runs for all images", warning=True)

    def tell(self, code: str, message: str, *, warning: bool = False) -> None:
        data = {"images": len(self.entries), "bytes": self.file.end}
        message = f"the teacher's cache, {len(self.entries)} entries in {self.file.end / 2**20:.0f} MiB, {message}"
        self.emit(Note(code=code, message=message, data=data, level="warning" if warning else "info"))

    def figures(self) -> dict[str, float]:
        """Share of the images since this was asked last whose maps were read; MiB that the file takes."""
        seen, read = self.seen - self.told_seen, self.read - self.told_read
        self.told_seen, self.told_read = self.seen, self.read
        return {"teacher/cache_hits": read / seen if seen else 0.0, "teacher/cache_mb": self.file.end / 2**20}

    def cost(self) -> Note:
        share = self.read / self.seen if self.seen else 0.0
        message = (
            f"the teacher's maps of {100 * share:.1f} % of the images were read from its cache, "
            f"{self.file.end / 2**20:.0f} MiB with {len(self.entries)} entries"
        )
        data = {"hits": share, "images": len(self.entries), "bytes": self.file.end}
        return Note(code="teacher_cache", message=message, data=data)


def keys_of(batch: Batch) -> list[Key]:
    whole = zip(batch.image_ids, batch.flips, batch.image_sizes, strict=True)
    return [(image_id, flips, size, batch.padded_size) for image_id, flips, size in whole]


def part(batch: Batch, chosen: Sequence[int]) -> Batch:
    """Some of the images, in that order, padded as they are."""
    return Batch(
        images_NCHW=batch.images_NCHW[chosen],
        image_sizes=tuple(batch.image_sizes[n] for n in chosen),
        original_sizes=tuple(batch.original_sizes[n] for n in chosen),
        targets=tuple(batch.targets[n] for n in chosen),
        image_ids=tuple(batch.image_ids[n] for n in chosen),
        flips=tuple(batch.flips[n] for n in chosen),
    )


def equal(one: Tensor, other: Tensor) -> bool:
    """Bit by bit: 0 is not -0, and a NaN is itself."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


# --- the file -------------------------------------------------------------------------------------------------


class CacheFull(Exception):
    """The bound is reached, or the disk has no more room to spare."""


class CacheFile:
    """Maps one behind the other, up to a bound."""

    def __init__(self, folder: Path, max_bytes: int, keep_free: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.max_bytes, self.keep_free = folder, max_bytes, keep_free
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # as long as the training
        self.end = 0
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.layouts: dict[Layout, Layout] = {}
        """Each once, for there are as many entries as images and flips."""

    def append(self, maps: Sequence[Tensor]) -> CacheEntry:
        """Raises Full, or OSError for a disk that is full all the same; neither changes what is there."""
        offset, places = 0, []
        for map_CHW in maps:
            places.append((offset, map_CHW.dtype, map_CHW.shape))
            offset += -(-map_CHW.nbytes // ALIGNED) * ALIGNED
        self.refuse(offset)
        layout = self.layouts.setdefault(tuple(places), tuple(places))
        entry, bytes_ = CacheEntry(self.end, offset, layout), self.room(offset)
        for (begin, _, _), map_CHW in zip(places, maps, strict=True):
            bytes_[begin : begin + map_CHW.nbytes] = map_CHW.reshape(-1).view(torch.uint8)
        try:
            self.write(bytes_.numpy().data, entry.begin)
        except OSError:
            os.ftruncate(self.file.fileno(), self.end)  # half an entry would only take room
            raise
        self.end += offset
        return entry

    def refuse(self, size: int) -> None:
        if self.end + size > self.max_bytes:
            raise CacheFull("is full")
        if (free := shutil.disk_usage(self.folder).free) < size + self.keep_free:
            raise CacheFull(f"stops growing: the disk has {free / 2**30:.1f} GiB left, which checkpoints may need")

    def write(self, bytes_: memoryview, place: int) -> None:
        while bytes_:
            done = os.pwrite(self.file.fileno(), bytes_, place)
            bytes_, place = bytes_[done:], place + done

    def read_into(self, maps: Sequence[Tensor], entry: CacheEntry) -> None:
        """Raises OSError."""
        bytes_ = self.room(entry.size)
        rest, place = bytes_.numpy().data, entry.begin
        while rest:
            done = os.preadv(self.file.fileno(), [rest], place)
            if not done:
                raise OSError(0, "the file is shorter than what was written")
            rest, place = rest[done:], place + done
        there = bytes_.to(maps[0].device)  # once, and as narrow as it was kept
        for map_CHW, (begin, dtype, shape) in zip(maps, entry.maps, strict=True):
            kept = there[begin : begin + shape.numel() * dtype.itemsize].view(dtype)
            map_CHW.copy_(kept.view(shape))

    def room(self, size: int) -> Tensor:
        """Memory for an entry, the same each time."""
        if len(self.buffer) < size:
            self.buffer = torch.empty(size, dtype=torch.uint8)
        return self.buffer[:size]
