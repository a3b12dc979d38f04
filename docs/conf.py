"""Sphinx configuration: `make docs`."""

from capvisor import __version__

project = "capvisor"
copyright = "2026, the capvisor contributors"
version = release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"capvisor {__version__}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]
