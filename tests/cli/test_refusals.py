"""Wrong input to every verb, one table: exit code 2, one line on stderr that names the flag as it was typed, nothing begun.

All of it is found before torch is loaded, a network is touched, or a file is made.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from gwtf_p2p.cli import main as command
from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.main import VERBS, main
from tests.cli.test_cli import RUN_FILE

MADDR = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
OWNER = MADDR[-52:]
SCENARIO = str(Path(__file__).parents[2] / "experiments" / "scenarios" / "homogeneous_churn_0.toml")
AB = ["ab", SCENARIO, "--out", "OUT"]
DEMO = ["demo"]
BOOTSTRAP = ["bootstrap"]
DATA = ["data", "--run_id", "r", "--initial_peers", MADDR]
PEER = ["peer", "--run_id", "r", "--initial_peers", MADDR]
MONITOR = ["monitor", "--run_id", "r", "--initial_peers", MADDR]
ROUTES = ["routes", "--run_id", "r", "--initial_peers", MADDR]
TOP = ["top", "--run_id", "r", "--initial_peers", MADDR]
SIM = ["sim", SCENARIO]
LIMITS = ("disk_gb", "memory_gb", "max_kept_gb", "quota_gb_day", "quota_gb_month", "upload_mbps", "download_mbps")

REFUSED = [
    # A path that is a file where a folder is meant, a folder where a file is, or goes through a file.
    (["ab", SCENARIO, "--out", "FILE"], "--out"),
    (["ab", SCENARIO, "--out", "FILE/below"], "--out"),
    ([*DEMO, "--keep_logs", "FILE"], "--keep_logs"),
    ([*DEMO, "--keep-logs", "FILE/below"], "--keep_logs"),
    ([*DEMO, "--checkpoint_dir", "FILE"], "--checkpoint_dir"),
    ([*DATA, "--checkpoint_dir", "FILE"], "--checkpoint_dir"),
    ([*PEER, "--checkpoint_dir", "FILE"], "--checkpoint_dir"),
    ([*PEER, "--spill_dir", "FILE"], "--spill_dir"),
    ([*PEER, "--event_log", "FOLDER"], "--event_log"),
    ([*PEER, "--identity_path", "FOLDER"], "--identity_path"),
    ([*PEER, "--identity_path", ""], "--identity_path"),
    ([*DATA, "--metrics", "FOLDER"], "--metrics"),
    ([*MONITOR, "--port", "0", "--history", "FOLDER"], "--history"),
    (["id", "--identity_path", "FOLDER"], "--identity_path"),
    (["id", "--identity_path", "FILE/below"], "--identity_path"),
    (["export", "FOLDER", "--out", "FILE"], "--out"),
    # Numbers and their ranges.
    ([*DEMO, "--stages", "0"], "--stages: expected a whole number from 1"),
    ([*DEMO, "--steps", "many"], "--steps: expected a whole number from 1"),
    ([*DEMO, "--capacity", "0"], "--capacity"),
    ([*DEMO, "--learning_rate", "nan"], "--learning_rate"),
    ([*DATA, "--shard", "-1"], "--shard: expected a whole number from 0, got '-1'"),
    ([*DATA, "--copies", "-1"], "--copies"),
    ([*PEER, "--run_owner", "me"], "--run_owner: expected a peer id"),
    ([*MONITOR, "--run_owner", "Qm"], "--run_owner"),
    ([*PEER, "--token", "short"], "--token: expected 16 to 1024 characters, got 5"),
    ([*PEER, "--token", "@nowhere"], "--token: nowhere cannot be read"),
    ([*MONITOR, "--token", "x" * 2000], "--token"),
    ([*MONITOR, "--run_id", "q", "--token", "x" * 20], "gwtf monitor: --token: expected with one run, got 2"),
    ([*TOP, "--run_id", "q", "--run_owner", OWNER], "gwtf top: --run_owner: expected with one run, got 2"),
    (["top", "http://127.0.0.1:9", "--run_owner", OWNER], "URL, --run_owner: http://127.0.0.1:9: expected one of them"),
    (["top", "http://127.0.0.1:9", "--token", "x" * 20], "URL, --token: http://127.0.0.1:9: expected one of them"),
    (["top", "http://127.0.0.1:9", "--initial_peers", MADDR], "URL, --initial_peers"),
    (["doctor", "--run_owner", OWNER], "--run_owner: expected with --run_id"),
    (["doctor", "--token", "x" * 20], "--token: expected with --run_id"),
    (["data", "--new_run", "FILE", "--run_owner", MADDR[-52:], "--initial_peers", MADDR], "--run_owner"),
    ([*DATA, "--copy_mbps", "0"], "--copy_mbps"),
    ([*DATA, "--upload_mbps", "-1"], "--upload_mbps"),
    ([*PEER, "--stage", "0"], "--stage: expected a whole number from 1"),
    ([*PEER, "--capacity", "0"], "--capacity"),
    ([*PEER, "--capacity", "1000000000"], "--capacity: expected a whole number from 1 to"),
    ([*DEMO, "--capacity", "1000000000"], "--capacity: expected a whole number from 1 to"),
    ([*PEER, "--threads", "-1"], "--threads"),
    ([*PEER, "--alert_after", "inf"], "--alert_after"),
    ([*PEER, "--max_kept_gb", "-1"], "--max_kept_gb"),
    ([*PEER, "--spill_dir", "FOLDER"], "--spill_dir"),
    ([*PEER, "--disk_gb", "2"], "--disk_gb: 2: expected --checkpoint_dir"),
    ([*PEER, "--checkpoint_every", "5"], "--checkpoint_every: 5: expected --checkpoint_dir"),
    ([*DATA, "--keep_checkpoints", "5"], "--keep_checkpoints: 5: expected --checkpoint_dir"),
    ([*DATA, "--disk_gb", "-1"], "--disk_gb"),
    ([*PEER, "--memory_gb", "much"], "--memory_gb"),
    ([*PEER, "--download_mbps", "-1"], "--download_mbps"),
    ([*PEER, "--quiet_hours", "22-7"], "--quiet_hours: expected hours as 22:00-07:00"),
    ([*PEER, "--quiet_hours", "22:00-22:00"], "--quiet_hours"),
    ([*DATA, "--quiet_hours", "22:00-07:00,25:00-26:00"], "--quiet_hours"),
    ([*PEER, "--quota_gb_day", "-1"], "--quota_gb_day"),
    ([*PEER, "--quota_gb_month", "inf"], "--quota_gb_month"),
    ([*PEER, "--nice", "20"], "--nice"),
    (["pause", "--identity_path"], "--identity_path"),
    (["resume", "--identity_path"], "--identity_path"),
    (["doctor", "--memory_gb", "-1"], "--memory_gb"),
    ([*BOOTSTRAP, "--timeout", "-1"], "--timeout"),
    ([*BOOTSTRAP, "--port", "65536"], "--port: expected a whole number from 0 to 65535"),
    (["doctor", "--port", "-1"], "--port"),
    ([*MONITOR, "--port", "99999"], "--port"),
    ([*AB, "--iterations", "0"], "--iterations"),
    ([*AB, "--time_scale", "0"], "--time_scale"),
    ([*SIM, "--iteration", "-1"], "--iteration"),
    ([*SIM, "--seeds", ""], "--seeds"),
    (["plan", "PROBLEM.json", "--seed", "x"], "--seed"),
    (["replay", "FILE", "--iteration", "x"], "--iteration"),
    # Limits that would be none, or that no arithmetic holds.
    *(([*PEER, f"--{flag}", "1e308"], f"--{flag}: expected") for flag in LIMITS),
    *(([*DATA, f"--{flag}", "1e-12"], f"--{flag}: expected 0 (no limit) or") for flag in LIMITS),
    ([*PEER, "--lend_gb", "1e308"], "--lend_gb"),
    ([*PEER, "--copy_mbps", "1e308"], "--copy_mbps"),
    (["doctor", "--memory_gb", "1e-12"], "--memory_gb"),
    ([*PEER, "--quiet_hours", "00:00-24:00"], "--quiet_hours: expected hours that leave some of the day"),
    ([*DATA, "--quiet_hours", "22:00-10:00,09:00-22:00"], "--quiet_hours: expected hours that leave some of the day"),
    # Words.
    ([*DEMO, "--torch_dtype", "int8"], "--torch_dtype"),
    ([*DEMO, "--device", "gpu"], "--device"),
    ([*DATA, "--torch_dtype", "int8"], "--torch_dtype"),
    ([*PEER, "--torch-dtype", "int8"], "--torch_dtype"),
    ([*PEER, "--device", "cuda:x"], "--device"),
    ([*PEER, "--log_level", "LOUD"], "--log_level"),
    (["doctor", "--torch_dtype", "int8"], "--torch_dtype"),
    (["doctor", "--device", "gpu"], "--device"),
    (["doctor", "--initial_peers", "nonsense"], "nonsense"),
    (["peer", "--run_id", "a b", "--initial_peers", MADDR], "--run_id"),
    (["data", "--run_id", "a b", "--initial_peers", MADDR], "--run_id"),
    (["monitor", "--run_id", "a b", "--initial_peers", MADDR], "--run_id"),
    (["routes", "--run_id", "a/b", "--initial_peers", MADDR], "--run_id"),
    (["ledger", "--run_id", "a b", "--initial_peers", MADDR], "--run_id"),
    (["top", "--run_id", "_a", "--initial_peers", MADDR], "--run_id"),
    (["generate", "text", "--run_id", "a b", "--initial_peers", MADDR], "--run_id"),
    (["generate", "text", "--run_id", "r", "--initial_peers", MADDR, "--top_p", "2"], "--top_p"),
    (["doctor", "--run_id", "a b", "--initial_peers", MADDR], "--run_id"),
    ([*MONITOR, "--log_level", "LOUD"], "--log_level"),
    ([*BOOTSTRAP, "--public_ip", "home"], "--public_ip"),
    # Flags that contradict each other, or that nothing would look at.
    ([*PEER, "-c"], "-c: expected the name of a TOML file"),
    ([*PEER, "--config="], "--config=: expected the name of a TOML file"),
    ([*PEER, "--config=nowhere.toml"], "nowhere.toml: cannot be read"),
    ([*DATA, "-cnowhere.toml"], "nowhere.toml: cannot be read"),
    ([*MONITOR, "-c", "here.toml", "--config", "there.toml"], "expected one TOML file, got here.toml, there.toml"),
    ([*PEER, "--conf", "nowhere.toml"], "--conf"),
    ([*PEER, "--disk", "5"], "--disk"),
    ([*BOOTSTRAP, "--use_relay", "--no_relay"], "--no_relay"),
    ([*BOOTSTRAP, "--circuit_relay", "yes", "--no-relay"], "--no_relay"),
    ([*BOOTSTRAP, "--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--port", "5"], "--port"),
    ([*MONITOR, "--history", "FILE", "--no_history"], "--history"),
    ([*AB, "--seeds", ""], "--seeds"),
    ([*AB, "--model", "tiny-llama"], "--model"),
    ([*AB, "--dataset", "stdlib"], "--dataset"),
    ([*AB, "--no_emulate_links"], "--emulate_links"),
    ([*AB, "--report_only"], "--report_only"),
    ([*AB, "--routers", "swarm:gamma=7"], "--routers swarm"),
    ([*AB, "--routers", "fastest"], "--routers"),
    ([*AB, "--backend", "cloud"], "--backend"),
    # What the run of the flags is refused for is said of the flag.
    ([*DEMO, "--router", "fastest"], "--router"),
    ([*DEMO, "--stages", "5000"], "--stages"),
    ([*DEMO, "--wire", "int3"], "--wire"),
    ([*DEMO, "--wire_averages", "int4"], "--wire_averages"),
    ([*DEMO, "--recovery", "slow"], "--recovery"),
    ([*DEMO, "--microbatches", str(1 << 40)], "--microbatches"),
    ([*DEMO, "--churn", "explode"], "--churn"),
    ([*DEMO, "--churn", "kill peer stage=9 iter=1"], "--churn"),
    # Flags that are not there: the line points to the verb's own help.
    ([*PEER, "--fast"], "gwtf peer --help"),
    ([*ROUTES, "--fast"], "gwtf routes --help"),
    ([*TOP, "--once"], "gwtf top --help"),
    (["run", "check", "FILE", "--fast"], "gwtf run --help"),
    (["run", "fly"], "gwtf run --help"),
    (["runs", "--initial_peers", "nonsense"], "nonsense"),
    (["ban", "me", "--run_id", "r", "--initial_peers", MADDR], "gwtf ban: argument PEER: expected a peer id"),
    (["ban", "--run_id", "r", "--initial_peers", MADDR], "gwtf ban: PEER: expected"),
    (["allow", "--fast"], "gwtf allow --help"),
    (["run", "allow", "me"], "gwtf run allow: argument PEER"),
    (["ban", MADDR[-52:], "--initial_peers", MADDR], "--run_id: expected"),
    (["allow", MADDR[-52:], "--run_id", "r"], "--initial_peers"),
    (["allow", MADDR[-52:], "--run_id", "r", "--initial_peers", MADDR, "--identity_path", "nowhere.key"], "nowhere.key"),
]


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a refused call prints."""
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse
        code = int(str(error.code))
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, ""), printed.err
    assert len(printed.err.splitlines()) == 1, printed.err
    assert "command line" not in printed.err
    return printed.err


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[" ".join(words)[-60:] for words, _ in REFUSED])
def test_it_is_refused_in_one_line_that_names_the_flag_and_leaves_nothing_behind(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GWTF_HOME", str(tmp_path / "home"))
    Path("FILE").write_text("of somebody\n")
    Path("FOLDER").mkdir()
    assert named in refusal(capsys, arguments)
    made = {path.name for path in tmp_path.iterdir()} - {"home"}
    assert made == {"FILE", "FOLDER"} and Path("FILE").read_text() == "of somebody\n" and not list(Path("FOLDER").iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*MONITOR, "--run_id", "q"], "gwtf monitor: GWTF_TOKEN: expected with one run, got 2"),
        (["data", "--new_run", "open.toml", "--initial_peers", MADDR], "GWTF_TOKEN: open.toml: expected no token"),
        (["top", "http://127.0.0.1:9"], "stdout: expected a terminal"),
    ],
)
def test_a_token_that_nobody_has_typed_is_named_by_its_variable(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("open.toml").write_text(RUN_FILE)
    monkeypatch.setenv("GWTF_TOKEN", "sixteen characters of a token")
    assert named in refusal(capsys, arguments)


def test_every_verb_is_in_the_table() -> None:
    known = {command.SHORT.get(words[0], (words[0],))[0] for words, _ in REFUSED}
    assert known == set(VERBS)


@pytest.mark.parametrize("flag", ["--no-emulate_links", "--no-emulate-links", "--no_emulate_links"])
def test_a_flag_is_turned_off_in_every_spelling_and_help_prints_one_of_them(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [command._with_underscores(word) for word in ["ab", SCENARIO, "--out", "x", flag]]
    assert command.build_parser("ab").parse_args(arguments).emulate_links is False
    with pytest.raises(SystemExit):
        main(["ab", "--help"])
    assert "--no_emulate_links" in capsys.readouterr().out


def test_a_flag_on_the_command_line_wins_over_a_file_that_says_the_opposite(tmp_path: Path) -> None:
    from gwtf_p2p.cli.flags.config_file import expand

    file = tmp_path / "peer.toml"
    file.write_text("use_relay = true\nport = 5\n")
    parser = command.build_parser("bootstrap")
    verb: Any = command._verb_parser(parser, "bootstrap")
    words = expand(["bootstrap", "-c", str(file), "--no_relay"], verb)
    args: argparse.Namespace = parser.parse_args(words)
    assert (args.circuit_relay, args.port) == ("no", 5)


def test_a_path_that_can_be_made_is_taken(tmp_path: Path) -> None:
    assert takes.folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert takes.folder(str(tmp_path)) == tmp_path
    assert takes.file(str(tmp_path / "a" / "log.jsonl")) == tmp_path / "a" / "log.jsonl"
    assert not list(tmp_path.iterdir())


def test_every_limit_of_a_peer_is_in_the_table_for_volunteers() -> None:
    """And no flag is in it that is none."""
    parser = command._verb_parser(command.build_parser("peer"), "peer")
    group = next(group for group in parser._action_groups if group.title == "limits")
    flags = {option for action in group._group_actions for option in action.option_strings}
    page = (Path(__file__).parents[2] / "docs" / "volunteer.md").read_text()
    told = set(re.findall(r"`(--\w+)`", page.partition("## Limits")[2].partition("**To pause**")[0]))
    assert flags - {"--lend_slots", "--lend_gb", "--spill_dir"} <= told, (
        "those that bound what strangers take are said elsewhere"
    )
    known = {option for action in parser._actions for option in action.option_strings}
    assert {flag for flag in told if flag not in known} == set()
