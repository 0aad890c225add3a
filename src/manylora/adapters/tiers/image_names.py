"""The names of packed images: the image that each version of a named adapter became, its text and its report."""

import hashlib
from collections.abc import Callable

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.tiers.image_folder import NameFile
from manylora.models.text.adapter_text import NO_TEXT

MERGE_KEY, PUSHED_KEY = "merge-", "pushed-"


class ImageNames:
    """The name keys of all versions on disk, each with the file name of its image. It touches no file.

    A name key is `<ref_key>.<hash of the version and of the rules of packing>`; one image may have several.
    """

    def __init__(self) -> None:
        self._images: dict[str, str] = {}  # name key → file name of the image
        self._keys: dict[str, list[str]] = {}  # file name of the image → its name keys, the oldest first
        self._keys_of_ref: dict[str, set[str]] = {}  # `ref_key` → the name keys that begin with it
        self._texts: dict[str, NameFile] = {}  # name key → its text, where there is one
        self._report_bytes: dict[str, int] = {}  # name key → size of its report, where there is one

    def __contains__(self, name_key: object) -> bool:
        return name_key in self._images

    def image(self, name_key: str) -> str | None:
        """Return the file name of a version's image; None if the version is not here."""
        return self._images.get(name_key)

    def keys(self, image: str) -> list[str]:
        """Return the name keys of an image, the oldest first."""
        return self._keys.get(image, [])

    def images_of(self, ref: AdapterRef) -> set[str]:
        """Return the images of all versions of a named adapter."""
        return {self._images[name_key] for name_key in self._keys_of_ref.get(ref_key(ref), ())}

    def keys_of(self, is_gone: Callable[[str], bool]) -> list[str]:
        """Return the name keys of every adapter whose `ref_key` is gone."""
        return [name_key for key, name_keys in self._keys_of_ref.items() if is_gone(key) for name_key in name_keys]

    def text_digest(self, name_key: str) -> str:
        """Return the digest of a version's text; `NO_TEXT` if it has none."""
        named = self._texts.get(name_key)
        return NO_TEXT if named is None else named.text_digest

    def has_report(self, name_key: str) -> bool:
        return name_key in self._report_bytes

    def num_bytes(self, name_key: str) -> int:
        """Return the bytes that a name's files take beside its image."""
        text = self._texts.get(name_key)
        text_bytes = 0 if text is None else text.text_bytes
        return len(self._images[name_key]) + text_bytes + self._report_bytes.get(name_key, 0)

    def add(self, name_key: str, named: NameFile, report_bytes: int) -> None:
        """Note the image that a version became."""
        self._images[name_key] = named.image
        if named.text_digest != NO_TEXT:
            self._texts[name_key] = named
        if report_bytes:
            self._report_bytes[name_key] = report_bytes
        self._keys_of_ref.setdefault(_ref_key_of(name_key), set()).add(name_key)
        self._keys.setdefault(named.image, []).append(name_key)

    def remove(self, name_key: str) -> None:
        """Forget the name of a version."""
        image = self._images.pop(name_key)
        self._keys[image].remove(name_key)
        if not self._keys[image]:
            del self._keys[image]
        self._texts.pop(name_key, None)
        self._report_bytes.pop(name_key, None)
        key = _ref_key_of(name_key)
        self._keys_of_ref[key].discard(name_key)
        if not self._keys_of_ref[key]:
            del self._keys_of_ref[key]

    def reports(self) -> set[str]:
        """Return the name keys that have a report."""
        return set(self._report_bytes)


def ref_key(ref: AdapterRef) -> str:
    """Return the part that the name keys of all versions of an adapter begin with.

    That of a merge has `MERGE_KEY` first, that of a pushed adapter `PUSHED_KEY`.
    """
    kind = MERGE_KEY if ref.merge else PUSHED_KEY if ref.source is SourceName.PUSHED else ""
    return f"{kind}{hashlib.sha256(str(ref).encode()).hexdigest()[:40]}"


def _ref_key_of(name_key: str) -> str:
    return name_key.partition(".")[0]
