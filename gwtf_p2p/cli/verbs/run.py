"""`gwtf run check FILE.toml` judges a run without a network; `schema` prints the fields of a file; `list` finds runs; `ban` and
`allow` say who may take part in one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.shared import run_list
from gwtf_p2p.cli.shared.json_lines import note
from gwtf_p2p.cli.shared.run_file import check_settings, read_toml, run_from_plain


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("run", help="check a run file, or print the schema of them all", description=__doc__)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    check = actions.add_parser("check", help="check a run file without a network, and say what the run will take")
    check.add_argument("file", type=Path, metavar="FILE.toml")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.set_defaults(run=run_check)
    run_list.add_parsers(actions)
    schema = actions.add_parser("schema", help="print the JSON schema of run files")
    schema.set_defaults(run=run_schema)


def run_schema(args: argparse.Namespace) -> int:
    """Prints the JSON schema."""
    from gwtf_p2p.cli.shared.run_schema import run_file_schema

    print(json.dumps(run_file_schema(), indent=1))
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Prints what the run will take. Raises InputError for the first thing that is wrong, cheapest check first."""
    plain = read_toml(args.file)
    check_settings(plain, str(args.file))
    doing = "loads torch and transformers, and compares the split model with the whole one: this takes some seconds"
    note(f"the settings are right; {doing}")
    run = run_from_plain(plain, str(args.file))
    from gwtf_p2p.cli.shared.run_report import report_of, told

    report = report_of(run, str(args.file))
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join(told(report)))
    return 0
