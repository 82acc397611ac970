"""Are the libraries the ones that were built, and which does this processor really run? Decoded with, not read from cpuid."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from modeld.doctor.procfs import Roots
from modeld.doctor.report import Fact, Finding, note, ok, problem, warning
from modeld.errors import LibraryMismatch
from modeld.llm import bundle, variants
from modeld.llm.stamp import Stamp, cpu_flags
from modeld.llm.variants import Survey, Tried, Verdict

CPU_ALONE = "ggml-cpu"
GIVING_WAY = 5  # niceness of tries beside a daemon: they have a time limit, and take 0.2 s on one core
WITHOUT = "without a library nothing is loaded: `make build` makes one here, or take a modeld for this kind of processor"
FAST = ("avx", "amx", "fma", "sve", "i8mm", "asimddp")


def look(roots: Roots, environ: Mapping[str, str]) -> tuple[Stamp | None, list[Finding]]:
    """Stamps and digests; of a set, the stamp of one of them. None: there is nothing to decode with.

    In a process that ends: the library of a zip file becomes a file without a name (bundle.library_path).
    """
    try:
        found = bundle.library_set()
        if found is None:
            path, stamp = bundle.library_path()
            return stamp, list(_single(roots, path, stamp, environ))
    except LibraryMismatch as error:
        return None, [problem("library_refused", str(error), WITHOUT)]
    stamps, findings = [], []
    for variant in found.variants:
        try:
            stamps.append(found.stamp(variant))
        except LibraryMismatch as error:
            findings.append(warning("library_damaged", str(error), "install this modeld anew", about=variant))
    flags: Mapping[str, str] = stamps[0].flags if stamps else {}
    names = ", ".join(sorted(found.variants))
    commit = stamps[0].llama_commit if stamps else None
    findings.append(
        ok(
            "library_set",
            f"{len(found.variants)} libraries in {found.where}, each for a kind of CPU: {names}; llama.cpp {commit}, "
            f"{flags.get('compiler')}, {flags.get('backends')}",
            path=str(found.where),
            variants=sorted(found.variants),
            llama_commit=commit,
            sha256={stamp.flags.get("variant", ""): stamp.library_sha256 for stamp in stamps},
        )
    )
    return (stamps[0] if stamps else None), findings


def _single(roots: Roots, path: Path, stamp: Stamp, environ: Mapping[str, str]) -> Iterator[Finding]:
    archive = bundle.zip_file()
    named = environ.get("MODELD_LIBRARY")
    where = f"MODELD_LIBRARY ({path})" if named else f"inside {archive}" if archive else str(path)
    flags = stamp.flags
    native = flags.get("GGML_NATIVE") == "ON"
    kind = "for the CPU it was built on" if native else f"for {flags.get('variant', 'every CPU of its kind')}"
    yield ok(
        "library",
        f"{where}: llama.cpp {stamp.llama_commit}, sha256 {stamp.library_sha256[:12]}... as stamped, {flags.get('compiler')}, "
        f"{flags.get('backends')}, {kind}",
        path=str(archive if archive and not named else path),
        llama_commit=stamp.llama_commit,
        sha256=stamp.library_sha256,
        flags=flags,
        cpu_flags=stamp.cpu_flags,
    )
    if named:
        yield note("library_named", "MODELD_LIBRARY names it, whatever else is installed", about=str(path))
    unused = [flag for flag in cpu_flags(roots.proc / "cpuinfo") if flag.startswith(FAST) and flag not in stamp.cpu_flags]
    if unused and not native:
        yield note(
            "library_portable",
            f"it is built for others, too, and leaves unused {', '.join(unused[:8])}{' ...' if unused[8:] else ''}",
            "a build on this host (`make build`) does, and a release chooses among several",
            unused=unused,
        )


def has_gpu(stamp: Stamp | None) -> bool:
    return stamp is not None and stamp.flags.get("backends", CPU_ALONE) != CPU_ALONE


# -- tried


def tries(folder: Path | None, *, give_way: bool) -> Survey:
    """Each library decodes stored tokens in a process of its own. `folder`: where a start remembers its choice."""
    if give_way:
        os.nice(GIVING_WAY)
    return variants.survey(folder)


def tried(survey: Survey) -> Iterator[Finding]:
    """One finding a library, and which one a start takes. Pure."""
    is_only = len(survey.tried) == 1
    for one in survey.tried:
        yield _verdict(one, is_only=is_only)
    if survey.chosen is None:
        yield problem("library_none", f"no library runs here ({survey.why}): the daemon does not start", WITHOUT)
    elif not is_only:
        yield ok("library_chosen", f"a start takes {survey.chosen} ({survey.why})", variant=survey.chosen, why=survey.why)


def _verdict(one: Tried, *, is_only: bool) -> Finding:
    facts: dict[str, Fact] = {"verdict": one.verdict.value, "seconds": round(one.seconds, 3)}
    about = "" if is_only else one.variant
    if one.verdict is Verdict.RUNS:
        return ok("library_runs", f"decoded stored tokens here: {one.detail} ({one.seconds:.2f} s)", about=about, more=facts)
    if one.verdict is Verdict.LACKS:
        return note("library_lacks", f"not for this processor: {one.detail}", about=about, more=facts)
    make = problem if is_only else warning
    if one.verdict is Verdict.DIED:
        return make(
            "library_died",
            f"the process that decoded with it {one.detail}",
            "SIGILL is an instruction that does not run here, whatever cpuid says (hypervisor, kernel, microcode); else its "
            "code is wrong. " + _OTHER,
            about=about,
            more=facts,
        )
    if one.verdict is Verdict.WRONG:
        return make("library_wrong", f"it runs and computes wrong: {one.detail}", _OTHER, about=about, more=facts)
    if one.verdict is Verdict.HUNG:
        return make(
            "library_hung",
            f"it {one.detail}",
            "where this host is very busy, look again later; else: " + _OTHER,
            about=about,
            more=facts,
        )
    if one.verdict is Verdict.DAMAGED:
        return make("library_damaged", one.detail, "install this modeld anew", about=about, more=facts)
    return make("library_untried", one.detail, "see the limits of processes and memory below", about=about, more=facts)


_OTHER = "Build it on this host (docs/building.md), with another compiler where that is what made it"
