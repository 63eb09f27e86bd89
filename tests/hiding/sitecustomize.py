"""Hides the package that the environment variable HIDDEN names, as if it were not installed.

Python imports a module of this name when it starts, where the search path has this folder.
"""

import os
import sys


class Without:
    """A finder that finds all that another one finds, but one package."""

    def __init__(self, finder, package):
        self.finder, self.package = finder, package

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == self.package else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # importlib.metadata asks finders for distributions
        return getattr(self.finder, name)


def hide(package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.meta_path[:] = [
        Without(finder, package) if hasattr(finder, "find_spec") else finder for finder in sys.meta_path
    ]


if "HIDDEN" in os.environ:
    hide(os.environ["HIDDEN"])
