"""The doctor's lines about the network. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import Any

from gwtf_p2p.live.discovery.clock_skew import ClockVerdict
from gwtf_p2p.live.doctor.network import NetworkFindings, RelayTrial
from gwtf_p2p.live.doctor.report import BOOTSTRAP, MB, ROLES, TRAINING, Line, Status
from gwtf_p2p.live.measure.bandwidth import Speed
from gwtf_p2p.live.nat.nat_kind import NatKind, kind_of_nat, second_nat
from gwtf_p2p.live.nat.reachability_rules import host_of
from gwtf_p2p.protocol.stall.rules import counted

LOW_BYTES_PER_S = 1e6
"""A boundary activation of 4 MB takes 4 s each way at this speed."""
LOW_BUDGET = 1 << 30
HOUR_S = 3600


def network_lines(found: NetworkFindings) -> list[Line]:
    """All about the network. Without initial peers most of it is unknown, and says what is missing."""
    lines = [_joined(found), _nat(found)]
    lines += [_mapping(found)] if found.mapping is not None else []
    if found.joined:
        lines += [_dht(found), _relay(found), *_speeds(found)]
    lines.append(_way_in(found))
    return [*lines, _clock(found)] if found.clock is not None else lines


def _joined(found: NetworkFindings) -> Line:
    values = {"joined": list(found.joined), "failed": found.failed}
    failures = "; ".join(f"{text}: {why}" for text, why in found.failed.items())
    if not found.asked:
        missing = "give --initial_peers: one public peer of the swarm, better two"
        return Line("initial_peers", Status.UNKNOWN, "none given", missing, TRAINING, True, values)
    if not found.joined:
        remedy = "check the addresses and this machine's connection; ask the swarm for other initial peers"
        return Line("initial_peers", Status.BAD, failures, remedy, ROLES, True, values)
    text = f"{len(found.joined)} of {found.asked} answer"
    status = Status.REMARK if failures else Status.GOOD
    return Line("initial_peers", status, f"{text}; {failures}" if failures else text, "", (), True, values)


def _nat(found: NetworkFindings) -> Line:
    kind, reason = kind_of_nat(found.evidence)
    double, why_double = second_nat(found.evidence)
    text = f"{kind.words} ({reason})"
    if double:
        text += f"; and behind it a second NAT, your provider's or another router of yours ({why_double})"
    elif why_double:
        text += f"; perhaps a second NAT ({why_double})"
    status = Status.GOOD if kind.strangers_get_in else Status.UNKNOWN if kind is NatKind.UNKNOWN else Status.REMARK
    values = {"kind": kind.value, "second_nat": double, "observed": list(found.evidence.observed), "hops": found.evidence.hops}
    return Line("nat", status, text, _nat_remedy(found, kind, double), (), True, values)


def _nat_remedy(found: NetworkFindings, kind: NatKind, double: bool | None) -> str:
    if kind.strangers_get_in or kind is NatKind.UNKNOWN:
        return ""
    if kind is NatKind.FIREWALL:
        return f"to be called directly, let TCP port {found.port} in at the firewall; else circuit relays are used"
    if double:
        return (
            "to be called directly, ask the provider for a public address, or use IPv6; else circuit relays and "
            "punching are used"
        )
    router = found.evidence.hops[0] if found.evidence.hops else "the router"
    return (
        f"to be called directly, turn on UPnP or PCP in {router}, or forward TCP port {found.port} there "
        f"to {found.evidence.own_ip}; else circuit relays and punching are used"
    )


def _mapping(found: NetworkFindings) -> Line:
    trial = found.mapping
    assert trial is not None, "asked for only when it was tried"
    if trial.mapped is None:
        text = f"the router forwards no port on request ({trial.why})"
        return Line("port_mapping", Status.REMARK, text, "", (), True, {"maps": False})
    values = {"maps": True, "kind": trial.mapped.kind, "outside_ip": trial.outside_ip, "dialled": trial.dialled}
    text = f"the router {trial.mapped.router} forwards ports on request ({trial.mapped.kind})"
    if trial.dialled:
        return Line("port_mapping", Status.GOOD, f"{text}, and a public peer got in there", "", (), True, values)
    if trial.dialled is None:
        return Line("port_mapping", Status.UNKNOWN, f"{text}; no initial peer has tried one", "", (), True, values)
    text += f", but nobody got in at {trial.mapped.maddr}"
    return Line("port_mapping", Status.REMARK, text, "something before the router drops it, or another NAT", (), True, values)


def _way_in(found: NetworkFindings) -> Line:
    """Can others call this machine? What the roles hang on."""
    kind, _ = kind_of_nat(found.evidence)
    mapped = bool(found.mapping and found.mapping.dialled)
    slots = [trial for trial in found.relays if trial.slot is not None]
    values = {"direct": kind.strangers_get_in, "mapped": mapped, "relays": len(slots)}
    if kind.strangers_get_in or mapped:
        how = "directly" if kind.strangers_get_in else "at a port that the router maps"
        return Line("way_in", Status.GOOD, f"others call this machine {how}", "", (), True, values)
    if not found.joined:
        unknown = "cannot tell whether others can call this machine: no initial peer answers"
        return Line("way_in", Status.UNKNOWN, unknown, "give --initial_peers that answer", ROLES, True, values)
    if slots:
        others = ", and directly where a hole can be punched" if kind is not NatKind.SYMMETRIC else ""
        if kind is NatKind.UNKNOWN:
            text = f"others call this machine through {len(slots)} circuit relays; whether directly too is not known"
            return Line("way_in", Status.UNKNOWN, text, "see the line on NAT", (BOOTSTRAP,), True, values)
        text = f"others call this machine through {len(slots)} circuit relays{others}"
        remedy = "for a bootstrap peer: a machine with a public address, or a forwarded port"
        return Line("way_in", Status.BAD, text, remedy, (BOOTSTRAP,), True, values)
    remedy = "give --initial_peers that are circuit relays (a `gwtf bootstrap` on a public address is), or see the line on NAT"
    return Line("way_in", Status.BAD, "nobody can call this machine", remedy, ROLES, True, values)


def _dht(found: NetworkFindings) -> Line:
    if found.dht_why:
        remedy = "the initial peers are no DHT peers of a swarm: ask for others"
        return Line("dht", Status.BAD, found.dht_why, remedy, ROLES, True)
    return Line("dht", Status.GOOD, "the DHT answers", "", (), True)


def _clock(found: NetworkFindings) -> Line:
    check = found.clock
    assert check is not None, "asked for only when it was made"
    values = {"offset_s": round(check.offset_s, 3), "peers": check.peers}
    if check.verdict is ClockVerdict.GOOD:
        return Line("clock", Status.GOOD, f"{check.offset_s:+.2f} s from {counted(check.peers, 'peer')}", values=values)
    if check.verdict is ClockVerdict.UNKNOWN:
        return Line("clock", Status.UNKNOWN, check.reason, values=values)
    bad = check.verdict is ClockVerdict.REFUSE
    remedy = "set the clock by NTP (timedatectl set-ntp true)"
    return Line("clock", Status.BAD if bad else Status.REMARK, check.reason, remedy, ROLES if bad else (), values=values)


def _relay(found: NetworkFindings) -> Line:
    values = {"relays": [_relay_values(trial) for trial in found.relays]}
    held = [trial.slot for trial in found.relays if trial.slot is not None]
    if held:
        most = max(held, key=lambda slot: slot.circuit_bytes or 1 << 62)
        budget = _budget(most.circuit_bytes, most.circuit_s)
        text = f"{len(held)} of {len(found.relays)} circuit relays give a slot; a circuit carries {budget}"
        if most.circuit_bytes and most.circuit_bytes < LOW_BUDGET:
            remedy = "circuits are renewed under way, which costs time; a `gwtf bootstrap` as circuit relay gives more"
            return Line("relay", Status.REMARK, text, remedy, (), True, values)
        return Line("relay", Status.GOOD, text, "", (), True, values)
    reasons = "; ".join(trial.why for trial in found.relays) or "no initial peer is a circuit relay"
    return Line("relay", Status.REMARK, reasons, "give --initial_peers that relay: any `gwtf bootstrap` does", (), True, values)


def _relay_values(trial: RelayTrial) -> dict[str, Any]:
    slot, speed = trial.slot, trial.speed
    return {
        "relay": trial.relay,
        "slot": slot is not None,
        "circuit_bytes": slot.circuit_bytes if slot else None,
        "circuit_s": slot.circuit_s if slot else None,
        "why": trial.why,
        **(_speed_values(speed) if speed else {}),
    }


def _budget(circuit_bytes: int, circuit_s: int) -> str:
    size = _size(circuit_bytes) if circuit_bytes else "any number of bytes"
    life = f"{circuit_s / 60:.0f} minutes" if circuit_s < 2 * HOUR_S else f"{circuit_s / HOUR_S:.0f} hours"
    return f"{size} each way, for {life}" if circuit_s else f"{size} each way"


def _size(count: int) -> str:
    """Of bytes, in the unit that keeps it short."""
    unit, name = (1e12, "TB") if count >= 1e12 else (1e9, "GB") if count >= 1e9 else (MB, "MB")
    return f"{count / unit:.1f} {name}"


def _speeds(found: NetworkFindings) -> list[Line]:
    lines = []
    if found.best is not None:
        lines.append(_speed("speed_direct", f"with {host_of(found.joined[0])}", found.best))
    elif found.best_why:
        lines.append(Line("speed_direct", Status.UNKNOWN, found.best_why, "", (), True))
    tried = next((trial for trial in found.relays if trial.speed is not None), None)
    failed = [trial.why for trial in found.relays if trial.slot is not None and trial.why]
    if tried is not None and tried.speed is not None:
        lines.append(_speed("speed_relay", f"through {host_of(tried.maddr)} and back to this machine", tried.speed))
    elif failed:
        lines.append(Line("speed_relay", Status.REMARK, f"nothing came through: {'; '.join(failed)}", "", (), True))
    return lines


def _speed(check: str, where: str, speed: Speed) -> Line:
    up, down = speed.up_bytes_per_s / MB, speed.down_bytes_per_s / MB
    at_least = "at least " if speed.echoed else ""
    text = f"{where}: {at_least}{up:.1f} MB/s up, {at_least}{down:.1f} MB/s down ({speed.moved_bytes / MB:.1f} MB sent)"
    if speed.cut_after:
        text += f"; cut after {speed.cut_after / MB:.2f} MB"
    low = min(speed.up_bytes_per_s, speed.down_bytes_per_s) < LOW_BYTES_PER_S and not speed.echoed
    remedy = "the planner will send this peer little: use a cable instead of WLAN, or a faster line" if low else ""
    return Line(check, Status.REMARK if low or speed.cut_after else Status.GOOD, text, remedy, (), True, _speed_values(speed))


def _speed_values(speed: Speed) -> dict[str, Any]:
    return {
        "up_bytes_per_s": round(speed.up_bytes_per_s),
        "down_bytes_per_s": round(speed.down_bytes_per_s),
        "moved_bytes": speed.moved_bytes,
        "echoed": speed.echoed,
        "cut_after": speed.cut_after,
    }
