"""The models of all bodies of requests."""

import importlib
import pkgutil

from manylora.server import schemas
from manylora.server.schemas.body import Body


def body_models() -> list[type[Body]]:
    """Return every model with fields or rules, by name."""
    for module in pkgutil.walk_packages(schemas.__path__, f"{schemas.__name__}."):
        importlib.import_module(module.name)
    return sorted((model for model in _below(Body) if model.names()), key=lambda model: model.__name__)


def _below(root: type[Body]) -> set[type[Body]]:
    return {found for child in root.__subclasses__() for found in (child, *_below(child))}
