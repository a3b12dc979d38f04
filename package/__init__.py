"""capvisor: executable, machine-checked models of thin monitors."""

from importlib.metadata import version

__version__ = version("capvisor")
