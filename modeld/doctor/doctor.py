"""`modeld doctor`: what is asked, in which order, and what becomes of an answer that does not come. Exit status 0 or 1.

Whatever is asked of files, sockets, programs and libraries is asked in processes of their own (apart.py): a question that hangs
or ends its process costs its line. Nothing is changed, and a daemon that runs is asked a few small things and given way to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from modeld import __version__, exits, outputs
from modeld.doctor import configured, cores, files, host, library, limits, memory, network, speed, state, unit
from modeld.doctor.apart import Answer, Job, ask, failure_of
from modeld.doctor.configured import Configured
from modeld.doctor.files import Looked
from modeld.doctor.limits import Subject
from modeld.doctor.network import Address, Reached
from modeld.doctor.procfs import Roots, uid_of
from modeld.doctor.report import Finding, Level, Report, Section, note, problem, result, to_json, to_text, warning
from modeld.doctor.shipped import UNIT
from modeld.doctor.unit import Service
from modeld.llm.bundle import zip_file
from modeld.llm.stamp import Stamp
from modeld.manager.statefile import state_folder
from modeld.types import ModelSpec

KEY_VARIABLE = "MODELD_API_KEY"  # of clients: with it a daemon that wants keys tells more

SHORT_S = 10.0  # for what reads a few files, or asks a daemon: network.TIMEOUT_S comes first
LOOK_S = 30.0  # for the head of a model file, on a slow disk
COMPUTE_S = 120.0  # for a decode: on a machine that computes elsewhere on all cores, threads wait long for each other


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted, and where the host's tables are."""

    config: Path | None = None
    server: Address | None = None  # the daemon to ask instead of the configured address
    decode: bool = True
    roots: Roots = field(default_factory=Roots)
    short_s: float = SHORT_S
    look_s: float = LOOK_S


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 nothing worse than a warning, 1 a problem, or a report that cannot be written."""
    report = examine(Order(config=args.config, server=args.server, decode=not args.no_decode))
    text = json.dumps(to_json(report), indent=2) + "\n" if args.json else to_text(report)
    status = exits.FAILED if report.level is Level.PROBLEM else exits.OK
    if args.output is None:
        return outputs.write(sys.stdout, text) or status
    try:
        args.output.write_text(text, "utf-8")
    except OSError as error:
        print(f"modeld: the report cannot be written: {args.output}: {error.strerror}", file=sys.stderr)
        return exits.FAILED
    return outputs.write(sys.stdout, f"{args.output}: {result(report)}\n") or status


def examine(order: Order) -> Report:
    """Asks everything, in four rounds: what is configured; who runs; what the host has for that; what computes."""
    roots = order.roots
    path = _config_path(order.config)
    read, service = _first(order, path)
    # Who would run this configuration: the service, or whoever starts a daemon here.
    served = service if _is_of_service(path, service) else Service(())
    config = read.config
    models: Sequence[ModelSpec] = config.models if config is not None else ()

    reached = _reached(order, read)
    daemon_pid = served.pid or next((one.pid for one in reached if one.daemon), None)
    runs = service.pid is not None or any(one.daemon for one in reached)
    pid = str(daemon_pid) if daemon_pid is not None else "self"
    is_daemon = daemon_pid is not None

    looked = _models(order, models, served)
    needs = {spec.id: one.footprint for spec, one in zip(models, looked, strict=True)}
    stamp, library_findings = _library(order)
    max_connections = config.server.max_connections if config is not None else 512
    subject = _subject(roots, served, pid, is_daemon=is_daemon)
    overlap = config is not None and config.switching.strategy == "overlap"

    def memories() -> list[Finding]:
        room, found = memory.measure(roots, pid, is_daemon=is_daemon)
        found += memory.models(room, needs, models, overlap=overlap, has_gpu=library.has_gpu(stamp))
        wanted = limits.wanted_threads(max_connections)
        return found + list(memory.kernel(roots, max_threads=wanted, from_zip=zip_file() is not None))

    folder, by_service = _state_folder(path, served)
    questions: dict[str, Callable[[], Iterable[Finding]]] = {
        "versions": lambda: host.versions(roots),
        "processor": lambda: cores.processor(roots),
        "cores": lambda: cores.cores(roots, pid, models, is_daemon=is_daemon),
        "memory": memories,
        "limits": lambda: limits.findings(roots, subject, max_connections, models, needs),
        "state": lambda: state.look(roots, folder, by_service=by_service),
    }
    told = dict(zip(questions, _findings(order, questions), strict=True))
    ran, speed_findings = _computed(order, read, stamp, folder, give_way=runs)
    user = _user(roots, pid, is_daemon=is_daemon)
    sections = {
        "versions": told["versions"],
        "library": [*library_findings, *ran],
        "processor and cores": [*told["processor"], *told["cores"]],
        "memory": told["memory"],
        "limits": [*told["limits"], *user],
        "configuration": list(read.findings),
        "models": [finding for one in looked for finding in one.findings],
        "state": told["state"],
        "network": [finding for one in reached for finding in one.findings],
        "service": list(service.findings),
        "decode": speed_findings,
    }
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Report(__version__, at, tuple(Section(name, tuple(found)) for name, found in sections.items() if found))


# -- the first round: what is configured


def _config_path(flag: Path | None) -> Path:
    """As config.find_config has it, which needs PyYAML; without asking a file system that may be gone."""
    if flag is not None:
        return flag
    named = os.environ.get("MODELD_CONFIG")
    if named:
        return Path(named)
    here = Path("configs/models.yaml")
    return here if os.path.exists(here) else Path("/etc/modeld/models.yaml")  # noqa: PTH110 - which raises nothing


def _first(order: Order, path: Path) -> tuple[Configured, Service]:
    [found] = ask([Job(partial(unit.look, order.roots, path, os.environ), order.short_s)])
    service = found.value or Service((_unanswered("service", found.failure),))
    credential = service.keys if _is_of_service(path, service) else None
    [answer] = ask([Job(partial(configured.read, order.config, os.environ, credential), order.short_s)])
    if answer.value is not None:
        return answer.value, service
    advice = "see whether the file system it lies on answers, and whether Python finds PyYAML (above)"
    finding = problem("config_unread", f"reading it {answer.failure}", advice, about=str(path))
    return Configured(path, None, (finding,)), service


def _is_of_service(path: Path, service: Service) -> bool:
    """Whether the service reads the configuration that this report is about."""
    try:
        return service.config == Path(os.path.abspath(path))  # noqa: PTH100 - by its name, whatever links lead to
    except OSError:  # the working directory is gone
        return False


# -- the second: who runs


def _reached(order: Order, read: Configured) -> list[Reached]:
    addresses = [(order.server, False)] if order.server is not None else [(one, True) for one in _addresses(read)]
    key = os.environ.get(KEY_VARIABLE) or None
    jobs = [
        Job(partial(network.look, order.roots, one, key, is_ours=is_ours), 4 * network.TIMEOUT_S) for one, is_ours in addresses
    ]
    found = []
    for (address, _), answer in zip(addresses, ask(jobs), strict=True):
        found.append(answer.value or Reached((_unanswered("network", answer.failure, about=str(address)),)))
    return found


def _addresses(read: Configured) -> list[Address]:
    """Where the configured daemon listens; without a configuration, where one would by default."""
    if read.config is None:
        return [Address("127.0.0.1", 8080)]
    server = read.config.server
    found = [Address(host, server.port) for host in server.host]
    return found if server.unix_socket is None else [*found, Address(unix=str(server.unix_socket))]


# -- the third: what the host has


def _models(order: Order, models: Sequence[ModelSpec], service: Service) -> list[Looked]:
    jobs = [Job(partial(files.look, order.roots, spec, service.reader), order.look_s) for spec in models]
    return [
        answer.value or Looked((files.unanswered(spec, answer.failure),)) for spec, answer in zip(models, ask(jobs), strict=True)
    ]


def _library(order: Order) -> tuple[Stamp | None, list[Finding]]:
    [answer] = ask([Job(lambda: library.look(order.roots, os.environ), order.look_s)])
    return answer.value if answer.value is not None else (None, [_unanswered("library", answer.failure)])


def _subject(roots: Roots, service: Service, pid: str, *, is_daemon: bool) -> Subject:
    if is_daemon:
        return Subject(pid, f"the daemon (pid {pid})", is_daemon=True, is_root=uid_of(roots.proc, pid) == 0)
    if service.limits is not None:
        return Subject(pid, UNIT, unit_limits=service.limits, is_root=service.is_root)
    return Subject(pid, "a process that is started like this one", is_root=os.geteuid() == 0)


def _state_folder(path: Path, service: Service) -> tuple[Path | None, bool]:
    """Of the service where there is one, else of a daemon that is started here; and whether it is the service's."""
    if service.installed and not os.environ.get("STATE_DIRECTORY"):
        return service.state_folder, True
    try:
        return state_folder(path, os.environ), False
    except OSError:  # the working directory is gone
        return None, False


def _user(roots: Roots, pid: str, *, is_daemon: bool) -> list[Finding]:
    if is_daemon and uid_of(roots.proc, pid) == 0:
        return [
            warning(
                "daemon_root",
                f"the daemon (pid {pid}) runs as root: whoever gets the better of it, or of a model file, has the host",
                "run it under a user of its own; deploy/modeld.service does that",
            )
        ]
    return []


def _findings(order: Order, questions: dict[str, Callable[[], Iterable[Finding]]]) -> list[list[Finding]]:
    jobs = [Job(partial(_listed, look), order.short_s) for look in questions.values()]
    answers: list[Answer[list[Finding]]] = ask(jobs)
    return [
        answer.value if answer.value is not None else _instead(name, look, answer)
        for (name, look), answer in zip(questions.items(), answers, strict=True)
    ]


def _instead(name: str, look: Callable[[], Iterable[Finding]], answer: Answer[list[Finding]]) -> list[Finding]:
    """Where no process can be had, the reason is among what these read, so they are read here."""
    if answer.started:
        return [_unanswered(name, answer.failure)]
    try:
        return _listed(look)
    except Exception as error:  # noqa: BLE001 - as in a process of its own
        return [_unanswered(name, failure_of(error))]


def _listed(look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    return list(look())


def _unanswered(name: str, failure: str, about: str = "") -> Finding:
    return warning(
        "check_failed",
        f"what concerns {name} could not be looked at: the check {failure}",
        "the rest of the report holds; where it hung, see which file system or program does not answer, else report this",
        about=about,
    )


# -- the fourth: what computes


def _computed(
    order: Order, read: Configured, stamp: Stamp | None, folder: Path | None, *, give_way: bool
) -> tuple[list[Finding], list[Finding]]:
    """Findings on the library, and on the speed."""
    if stamp is None:
        return [], [note("decode_skipped", "without a library nothing was decoded")]
    if not order.decode:
        return [], [note("decode_skipped", "nothing was decoded (--no-decode)")]
    [answer] = ask([Job(partial(library.tries, folder, give_way=give_way), COMPUTE_S)])
    survey = answer.value
    if survey is None:
        return [_unanswered("library", answer.failure)], [note("decode_skipped", "no library was tried")]
    ran = list(library.tried(survey))
    if survey.chosen is None:
        return ran, [note("decode_skipped", "no library runs here")]
    variant = survey.chosen
    n_threads, pinning = 0, "auto"
    if read.config is not None:
        chosen = next((spec for spec in read.config.models if spec.id == read.config.default_model), None)
        if chosen is not None:
            n_threads, pinning = chosen.n_threads, chosen.cpu_pinning
    [measured] = ask([Job(partial(speed.measure, variant, n_threads, pinning, give_way=give_way), COMPUTE_S)])
    return ran, speed.measured(measured, give_way=give_way)
