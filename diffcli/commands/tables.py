"""Tables of scores on stdout, for the commands that print some."""

import shutil

from diffcli.evaluation.report import Report
from diffcli.evaluation.tables import Table, blocks, means_table, summary_table
from diffcli.runtime import console


def print_report(report: Report) -> None:
    """The table of classes and domains; for several domains also their means."""
    print_table(summary_table(report))
    if len(report.domains) > 1:
        console.print_text("")
        print_table(means_table(report))


def print_table(table: Table) -> None:
    """A table in blocks of columns that fit the terminal."""
    for i, block in enumerate(blocks(table, width=shutil.get_terminal_size().columns)):
        if i:
            console.print_text("")
        console.table(*block[:3], footer=block.footer)
