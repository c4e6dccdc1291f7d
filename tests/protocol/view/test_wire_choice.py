"""`wire = "auto"` is decided once, by the slowest line that is stated, and the record says what was decided."""

from __future__ import annotations

import pytest

from gwtf_p2p.cli.shared.run_file import check_settings
from gwtf_p2p.cli.shared.run_schema import run_file_model
from gwtf_p2p.protocol.view.wire_choice import chosen_wire
from gwtf_p2p.protocol.wire.run_parts import WireSpec

PLAIN = {"run_id": "r", "seed": 0, "sequence_length": 8, "microbatch_size": 1, "microbatches_per_data_peer": 1}
INT8 = WireSpec("int8", "int8", "int8")


@pytest.mark.parametrize(
    ("lines", "expected", "reason"),
    [
        ((), INT8, "no line is stated"),
        ((0.0, -1.0), INT8, "no line is stated"),
        ((12.5e6, 2e9), INT8, "carries 100 Mbit/s"),
        ((1.25e8, 0.0), WireSpec("bfloat16", "bfloat16", "float16"), "carries 1000 Mbit/s"),
        ((2e9, 1.25e9), WireSpec(), "carries 10000 Mbit/s"),
    ],
)
def test_the_slowest_line_that_is_stated_decides(lines: tuple[float, ...], expected: WireSpec, reason: str) -> None:
    wire, why = chosen_wire(lines)
    assert wire == expected and reason in why
    assert chosen_wire(tuple(reversed(lines))) == (wire, why)
    wire.validate("my.toml")


def test_a_run_file_may_leave_it_to_the_lines_and_no_record_says_auto() -> None:
    plain = {**PLAIN, "wire": "auto"}
    assert check_settings(plain, "my.toml").wire == INT8
    run_file_model().model_validate(plain)
