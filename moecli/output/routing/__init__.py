"""What the router did, shown: on a screen, or as a file that anything can open."""

from __future__ import annotations

from moecli.output.routing.files import FORMATS, render, write_file
from moecli.output.routing.heat import View
from moecli.output.routing.screen import screen

__all__ = ["FORMATS", "View", "render", "screen", "write_file"]
