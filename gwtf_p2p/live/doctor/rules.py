"""The doctor's judgement: findings in, lines and verdicts out. Pure: no I/O, no clock.

Each line says what was found, whether that is good, for which roles it is an obstacle, and what to do about it. A role is *fit*
when no line stands against it, *unfit* when one does, and *unknown* when something that it needs could not be found out.

- A bootstrap peer must be dialled by strangers at any time: a public address, a forwarded port, or a router that maps it.
- A circuit relay or data peer needs one way in: as above, or a slot at a relay.
- All need a clock within 30 s of the others', memory, disk and file descriptors; no speed is too low, a low one is remarked on.

Exit code: 0 fit to be a stage peer (or nothing known against it), 3 the network is against it, 6 this machine is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gwtf_p2p.live.doctor.machine import MachineFindings, StageSpeed
from gwtf_p2p.live.doctor.network import NetworkFindings
from gwtf_p2p.live.doctor.network_lines import network_lines
from gwtf_p2p.live.doctor.report import BOOTSTRAP, MB, ROLES, STAGE, TRAINING, Line, RoleVerdict, Status
from gwtf_p2p.protocol.view.memory_plan import StageMemory

NETWORK_UNREACHABLE, RESOURCES = 3, 6

LEAST_MEMORY = 1 << 30
"""A peer takes 0.3 GB before it holds anything."""
LEAST_DISK = 2 << 30
LEAST_FILES = 1024
BOOTSTRAP_FILES = 4096


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`roles`: the verdict on each role, and the checks that stand against it or leave it open."""

    lines: tuple[Line, ...]
    roles: dict[str, tuple[RoleVerdict, tuple[str, ...]]]
    exit_code: int


def diagnose(
    network: NetworkFindings,
    machine: MachineFindings,
    stage: StageSpeed | str | None,
    stages: Sequence[StageMemory] = (),
) -> Diagnosis:
    """`stage`: the measurement, or why it failed; None when it was not asked for. `stages`: what the run's take."""
    lines = (
        *network_lines(network),
        _port(machine),
        _files(machine),
        _memory(machine, stage),
        *([_run_memory(machine, stages)] if stages else []),
        _disk(machine),
        _device(machine),
        *([_stage(stage)] if stage is not None else []),
    )
    roles = {role: _verdict(role, lines) for role in ROLES}
    obstacles = [line for line in lines if line.status is Status.BAD and STAGE in line.against]
    code = 0
    if obstacles:
        code = NETWORK_UNREACHABLE if any(line.is_network for line in obstacles) else RESOURCES
    return Diagnosis(lines, roles, code)


def _verdict(role: str, lines: Sequence[Line]) -> tuple[RoleVerdict, tuple[str, ...]]:
    bad = tuple(line.check for line in lines if line.status is Status.BAD and role in line.against)
    if bad:
        return RoleVerdict.UNFIT, bad
    unknown = tuple(line.check for line in lines if line.status is Status.UNKNOWN and role in line.against)
    return (RoleVerdict.UNKNOWN, unknown) if unknown else (RoleVerdict.FIT, ())


# ---- machine


def _port(machine: MachineFindings) -> Line:
    values = {"port": machine.port}
    if not machine.port_why:
        return Line("port", Status.GOOD, f"TCP port {machine.port} can be listened on", values=values)
    text = f"TCP port {machine.port}: {machine.port_why}; the checks above used another one"
    remedy = "perhaps a peer runs here already; else give --port another number"
    return Line("port", Status.REMARK, text, remedy, values=values)


def _files(machine: MachineFindings) -> Line:
    values = {"soft": machine.soft_files, "hard": machine.hard_files}
    text = f"{machine.soft_files} open files, {machine.hard_files} at most"
    remedy = f"raise it: ulimit -n {BOOTSTRAP_FILES}, or LimitNOFILE= of the service"
    if machine.hard_files < LEAST_FILES:
        return Line("open_files", Status.BAD, text, remedy, ROLES, values=values)
    if machine.hard_files < BOOTSTRAP_FILES:
        return Line("open_files", Status.BAD, f"{text}: few for a bootstrap peer", remedy, (BOOTSTRAP,), values=values)
    return Line("open_files", Status.GOOD, text, values=values)


def _memory(machine: MachineFindings, stage: StageSpeed | str | None) -> Line:
    free, values = machine.memory_bytes, {"available_bytes": machine.memory_bytes}
    if not free:
        return Line("memory", Status.UNKNOWN, "the system does not tell", values=values)
    held = stage.state_bytes if isinstance(stage, StageSpeed) and machine.device == "cpu" else 0
    text = f"{free / MB:,.0f} MB available"
    if free < LEAST_MEMORY:
        return Line("memory", Status.BAD, text, f"free some: a peer needs {LEAST_MEMORY / MB:,.0f} MB", ROLES, values=values)
    if free < LEAST_MEMORY + held:
        remedy = f"the stage that was measured holds {held / MB:,.0f} MB: free some, or take a smaller stage"
        return Line("memory", Status.BAD, text, remedy, TRAINING, values=values)
    return Line("memory", Status.GOOD, text, values=values)


def _run_memory(machine: MachineFindings, stages: Sequence[StageMemory]) -> Line:
    """Which stages of the run fit: into what the peer may take, else into what is available."""
    room = machine.allowed_bytes or machine.memory_bytes
    least, most = (pick(stages, key=lambda each: each.least) for pick in (min, max))
    fit = [each.stage for each in stages if not room or each.least <= room]
    values = {"least_bytes": {str(each.stage): each.least for each in stages}, "room_bytes": room, "fit": fit}
    text = f"stages of the run take {least.least / MB:,.0f} to {most.least / MB:,.0f} MB at least, "
    text += f"{len(fit)} of {len(stages)} fit into {room / MB:,.0f} MB"
    if fit or machine.device != "cpu":
        return Line("run_memory", Status.GOOD, text, values=values)
    remedy = f"allow {least.least / 1e9:.3g} GB or more, or join a run with more and smaller stages"
    return Line("run_memory", Status.BAD, text, remedy, (STAGE,), values=values)


def _disk(machine: MachineFindings) -> Line:
    text = f"{machine.disk_bytes / MB:,.0f} MB free at {machine.disk_at}"
    values = {"free_bytes": machine.disk_bytes, "at": str(machine.disk_at)}
    if machine.disk_bytes < LEAST_DISK:
        remedy = f"free some, or set GWTF_HOME: {LEAST_DISK / MB:,.0f} MB for datasets, spilled activations, checkpoints"
        return Line("disk", Status.BAD, text, remedy, TRAINING, values=values)
    return Line("disk", Status.GOOD, text, values=values)


def _device(machine: MachineFindings) -> Line:
    values = {"device": machine.device, "cuda": list(machine.cuda)}
    if machine.device == "cpu" and machine.cuda:
        return Line("device", Status.REMARK, "cpu", f"this machine has {machine.cuda[0]}: use --device cuda", values=values)
    name = machine.cuda[int(machine.device.partition(":")[2] or 0)] if machine.device.startswith("cuda") else "cpu"
    return Line("device", Status.GOOD, name, values=values)


def _stage(stage: StageSpeed | str) -> Line:
    if isinstance(stage, str):
        remedy = "use another --device, or free its memory"
        return Line("stage", Status.BAD, f"cannot compute a stage: {stage}", remedy, TRAINING)
    values = {
        "what": stage.what,
        "tokens_per_s": round(stage.tokens_per_s, 1),
        "forward_s": stage.forward_s,
        "backward_s": stage.backward_s,
        "state_bytes": stage.state_bytes,
    }
    times = f"{stage.forward_s:.3f} s forward, {stage.backward_s:.3f} s backward for {stage.tokens} tokens"
    return Line("stage", Status.GOOD, f"{stage.tokens_per_s:,.0f} tokens/s in {stage.what} ({times})", values=values)
