"""capvisor: executable, machine-checked models of thin monitors."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: `importlib.metadata` takes longer to import than it may."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415

    return version("capvisor")
