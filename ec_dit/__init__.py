"""Diffusion transformers with adaptive expert-choice routing (EC-DiT).

    import ec_dit

    run = ec_dit.load("runs/shapes")
    images = run.draw(["a red circle", "two squares"], seed=0)  # uint8 (2, Y, X, 3)
    routes = run.routing("a red circle")  # who took which patch: routes.taken_LUYXE
    figures = run.evaluate("shapes")

Importing the package loads nothing else; JAX starts when one of these names is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ec_dit.core.errors import UserError
    from ec_dit.runs.loaded import Run, load
    from ec_dit.sampling.routes import Routes

__all__ = ["Routes", "Run", "UserError", "load"]

_HOMES = {
    "Routes": "ec_dit.sampling.routes",
    "Run": "ec_dit.runs.loaded",
    "UserError": "ec_dit.core.errors",
    "load": "ec_dit.runs.loaded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
