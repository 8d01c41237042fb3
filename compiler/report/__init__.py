"""What a compile did, bought and cost: as plain data, as tables for a terminal, as one HTML page.

``build_report`` makes the data, ``write_report`` puts ``report.json`` and ``report.html`` into a folder,
``render`` prints tables. The page and the tables are made from the data alone, so an old ``report.json``
can be shown again.
"""

from compiler.report.build import SCHEMA, build_report
from compiler.report.page import page, write_report
from compiler.report.targets import render_targets
from compiler.report.terminal import render

__all__ = ["SCHEMA", "build_report", "page", "render", "render_targets", "write_report"]
