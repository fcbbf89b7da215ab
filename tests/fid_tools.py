"""pytorch-fid and clean-fid as they are, beside builds of torch and SciPy that they were not written for."""

import importlib
import importlib.util
import sys
import types


def load_torchvision():
    """Imports torchvision, once, beside a torch that its operators do not fit: its networks in Python run all the same."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    real = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function  # of operators that are not there
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = real


def load(name):
    """Imports a module of theirs, which finds a sqrtm with the argument that SciPy 1.18 dropped."""
    load_torchvision()
    module = importlib.import_module(name)
    if hasattr(module, "linalg"):
        from scipy import linalg

        def sqrtm(matrix, disp=True):
            root = linalg.sqrtm(matrix)
            return root if disp else (root, None)

        module.linalg = types.SimpleNamespace(sqrtm=sqrtm)
    return module
