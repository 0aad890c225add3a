"""The fields of a quantisation in config.json, checked by name."""

from collections.abc import Collection, Mapping
from typing import Any

from manylora.errors import ModelUnsupported

_EVERY = {"quant_method"}


class SchemeFields:
    """One JSON object of a quantisation; `where` is its place in config.json."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self._where = where

    def refuse_other(self, only: Mapping[str, Collection[object]], known: Collection[str]) -> None:
        """Refuse values that the reader lacks, and fields that are not understood. Raises `ModelUnsupported`."""
        for name, allowed in only.items():
            if name in self._fields and self._fields[name] not in allowed:
                supported = ", ".join(repr(value) for value in allowed if value not in (None, {}, []))
                hint = f" (supported: {supported})" if supported else ""
                raise ModelUnsupported(
                    f"config.json: {self._where}.{name} = {self._fields[name]!r} is not supported{hint}"
                )
        unknown = sorted(self._fields.keys() - only.keys() - set(known) - _EVERY)
        if unknown:
            raise ModelUnsupported(
                f"config.json: {self._where}.{unknown[0]} = {self._fields[unknown[0]]!r} is not understood, so it may "
                "change the result; remove it from config.json if it has no effect on this model"
            )

    def whole(self, name: str) -> int:
        """Return a field that must be a whole number. Raises `ModelUnsupported`."""
        value = self._fields.get(name)
        if type(value) is not int:
            raise ModelUnsupported(f"config.json: {self._where}.{name} = {value!r} must be a whole number")
        return value

    def group_size(self, name: str) -> int:
        """Return a group size: a positive number, or -1 for one group of all inputs. Raises `ModelUnsupported`."""
        value = self.whole(name)
        if value != -1 and value < 1:
            raise ModelUnsupported(f"config.json: {self._where}.{name} = {value} must be positive, or -1")
        return value
