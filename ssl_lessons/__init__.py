"""Self-supervised learning, built step by step on real images.

The names below are loaded when they are first used, so that `import ssl_lessons` costs nothing and the
command line never waits for libraries that a command does not need::

    import ssl_lessons as ssl
    store = ssl.images.load("shapes", "pretrain", size=64)
    method = ssl.MoCo(ssl.networks.conv4(), image_size=48, recipe="moco_v2")
    ssl.pretrain(method, store, epochs=10, run="runs/first")
"""

import warnings
from importlib import import_module

__version__ = "0.1.0"

# Accelerate imports tqdm, which warns in every notebook without ipywidgets; no lesson shows its bars.
warnings.filterwarnings("ignore", message="IProgress not found")

# In the order in which data meets them; each imports only from those before it.
_MODULES = (
    "parameters",
    "shapes",
    "images",
    "policies",
    "views",
    "networks",
    "processes",
    "methods",
    "devices",
    "optim",
    "records",
    "fast",
    "training",
    "evaluate",
    "diagnose",
    "figures",
    "lab",
    "batch",
    "cli",
)
_NAMES = {
    "ImageStore": "images",
    "Policy": "views",
    "tap": "networks",
    "Method": "methods.base",
    "Objective": "methods.base",
    "SimCLR": "methods.simclr",
    "MoCo": "methods.moco",
    "Relational": "methods.relational",
    "BYOL": "methods.byol",
    "SimSiam": "methods.simsiam",
    "Run": "records",
    "pretrain": "training",
    "judge": "evaluate",
    "load_encoder": "evaluate",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str):
    """Import a module, or the module of a name, at its first use (PEP 562)."""
    if name in _NAMES:
        value = getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"ssl_lessons has no {name!r}; it has: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
