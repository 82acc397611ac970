"""What is in it? The bill of materials, CycloneDX 1.6 as JSON: what was built from which source, under which licence, with which digests.

Deterministic: the serial number is made of the content (UUID version 5), the time is the release's.
Source: CycloneDX 1.6 JSON schema; package URL specification; SPDX licence list.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import time
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.dist.release import GLIBC, PYTHON, ROOT, LIBRARY, Release, Variant, digest, dotted
from scripts.dist.share import MODELS

LLAMA = ROOT / "third_party" / "llama.cpp"
MIT = [{"license": {"id": "MIT"}}]
GCC = [{"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"}]
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "modeld:sbom")

Component = dict[str, Any]


def bill(release: Release, artefacts: Mapping[str, str]) -> str:
    """The document. `artefacts`: what is handed over, path -> sha256."""
    variants = [_library(variant, release) for variant in release.variants]
    models = [_model(name) for name in MODELS]
    files = [_file(name, value, release) for name, value in sorted(artefacts.items())]
    llama, pyyaml = _llama(release), _pyyaml()
    kernels, yarn, runtime = _llamafile(), _yarn(), _gcc(release)
    main: Component = {
        "type": "application",
        "bom-ref": "modeld",
        "name": "modeld",
        "version": release.version,
        "description": "A daemon that keeps one llama.cpp model loaded and switches it on request",
        "licenses": MIT,
        "purl": f"pkg:generic/modeld@{release.version}",
        "properties": [
            {"name": "modeld:commit", "value": release.commit},
            {"name": "modeld:floor:glibc", "value": dotted(GLIBC)},
            {"name": "modeld:floor:python", "value": dotted(PYTHON)},
        ],
    }
    built_in = [kernels["bom-ref"], yarn["bom-ref"], llama["bom-ref"], runtime["bom-ref"]]
    libraries = [variant["bom-ref"] for variant in variants]
    edges = {
        "modeld": [pyyaml["bom-ref"], *libraries],
        **{name: built_in for name in libraries},
        **{model["bom-ref"]: [] for model in models},
        **{one["bom-ref"]: [] for one in (llama, pyyaml, kernels, yarn, runtime)},
        **{file["bom-ref"]: ["modeld"] for file in files},
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(release.epoch)),
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "scripts.dist of modeld", "version": release.version}]},
            "component": main,
            "licenses": MIT,
        },
        "components": [*variants, llama, kernels, yarn, runtime, pyyaml, *models, *files],
        "dependencies": [{"ref": ref, "dependsOn": sorted(wanted)} for ref, wanted in sorted(edges.items())],
        "compositions": [{"aggregate": "complete", "dependencies": ["modeld"]}],
    }
    content = json.dumps(document, sort_keys=True)
    serial = uuid.uuid5(NAMESPACE, content)
    return json.dumps({**document, "serialNumber": f"urn:uuid:{serial}"}, indent=2) + "\n"


def _library(variant: Variant, release: Release) -> Component:
    flags = {key: str(value) for key, value in sorted(variant.stamp["flags"].items()) if value}
    return {
        "type": "library",
        "bom-ref": f"libllama:{variant.name}",
        "name": LIBRARY,
        "version": f"{release.version}-{variant.name}",
        "description": f"llama.cpp with ggml in one file, for processors from {variant.name} on",
        "licenses": MIT,
        "hashes": [{"alg": "SHA-256", "content": variant.sha256}],
        "properties": [{"name": f"modeld:build:{key}", "value": value} for key, value in flags.items()],
    }


def _llama(release: Release) -> Component:
    """The source tree, where it came in, what it is by digest, and what was changed."""
    lock = tomllib.loads((ROOT / "third_party" / "llama.cpp.lock").read_text())
    commit = lock["commit"]
    purl = f"pkg:github/ggml-org/llama.cpp@{commit}"
    flags = release.variants[0].stamp["flags"]
    patches = []
    if flags.get("tokenizer_mend"):
        patches.append(
            {
                "type": "unofficial",
                "diff": {"text": {"contentType": "text/x-diff", "content": tokenizer_patch()}},
                "resolves": [
                    {
                        "type": "defect",
                        "name": "reserve in llm_tokenizer_spm_session::resegment",
                        "description": "Each character that the vocabulary lacks copied all tokens so far; 1 MB took 38 s.",
                    }
                ],
            }
        )
    mend = flags.get("amx_mend")
    notes = f"ggml-cpu/amx/mmq.cpp is compiled with {mend}, because gcc 12 drops stores before ldtilecfg." if mend else "No flags of ours."
    return {
        "type": "library",
        "bom-ref": purl,
        "group": "ggml-org",
        "name": "llama.cpp",
        "version": commit,
        "licenses": MIT,
        "copyright": "Copyright (c) 2023-2026 The ggml authors",
        "purl": purl,
        "externalReferences": [
            {"type": "vcs", "url": "https://github.com/ggml-org/llama.cpp", "comment": f"commit {commit}"},
            {
                "type": "source-distribution",
                "url": f"pkg:pypi/{lock['package']}@{lock['version']}",
                "comment": f"the parcel in which the tree came, as {lock['tree']}; nothing else of it is used",
                "hashes": [{"alg": "SHA-256", "content": lock["sha256"]}],
            },
        ],
        "pedigree": {
            "ancestors": [{"type": "library", "group": "ggml-org", "name": "llama.cpp", "version": commit, "purl": purl}],
            "patches": patches,
            "notes": notes,
        },
        "properties": [
            {"name": "modeld:tree-sha256", "value": tree_digest(LLAMA)},
            {"name": "modeld:llama.h-sha256", "value": digest(LLAMA / "include" / "llama.h")},
        ],
    }


def _llamafile() -> Component:
    path = LLAMA / "ggml" / "src" / "ggml-cpu" / "llamafile" / "sgemm.cpp"
    return {
        "type": "library",
        "bom-ref": "llamafile-sgemm",
        "name": "llamafile sgemm",
        "version": "as in llama.cpp",
        "description": "Matrix products, a file of llama.cpp's tree with a notice of its own",
        "licenses": MIT,
        "copyright": "Copyright 2024 Mozilla Foundation",
        "hashes": [{"alg": "SHA-256", "content": digest(path)}],
    }


def _yarn() -> Component:
    return {
        "type": "library",
        "bom-ref": "yarn",
        "name": "YaRN",
        "version": "as in llama.cpp",
        "description": "Scaling of rotary positions, lines of ggml-cpu/ops.cpp with a notice of their own",
        "licenses": MIT,
        "copyright": "Copyright (c) 2023 Jeffrey Quesnelle and Bowen Peng",
    }


def _gcc(release: Release) -> Component:
    compiler = str(release.variants[0].stamp["flags"].get("compiler", "unknown"))
    return {
        "type": "library",
        "bom-ref": "gcc-runtime",
        "name": "libstdc++ and libgcc, linked in",
        "version": compiler.rpartition(" ")[2],
        "licenses": GCC,
        "copyright": "Copyright (C) Free Software Foundation, Inc.",
    }


def _pyyaml() -> Component:
    version = yaml.__version__
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/pyyaml@{version}",
        "name": "PyYAML",
        "version": version,
        "licenses": MIT,
        "copyright": "Copyright (c) 2017-2021 Ingy dot Net, Copyright (c) 2006-2016 Kirill Simonov",
        "purl": f"pkg:pypi/pyyaml@{version}",
        "pedigree": {"notes": "Its Python files, without the C extension; in bin/modeld and as a wheel. The Debian package uses the system's."},
    }


def _model(name: str) -> Component:
    path = ROOT / "models" / name
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{path.stem}",
        "name": path.stem,
        "version": digest(path)[:12],
        "description": "A tiny demo model that this project trained on text that it generated",
        "licenses": MIT,
        "hashes": [{"alg": "SHA-256", "content": digest(path)}],
    }


def _file(name: str, value: str, release: Release) -> Component:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "version": release.version,
        "hashes": [{"alg": "SHA-256", "content": value}],
    }


def tree_digest(folder: Path) -> str:
    """One digest of a source tree: sha256 of the lines `sha256  path` of its files, sorted by path."""
    lines = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != ".modeld-fetched" and "__pycache__" not in path.parts:
            lines.append(f"{name}\0{digest(path)}")
    whole = "".join(f"{value}  {name}\n" for name, value in (line.split("\0") for line in sorted(lines)))
    return hashlib.sha256(whole.encode()).hexdigest()


def tokenizer_patch() -> str:
    """What cmake/TokenizerMend.cmake does to the source, as a patch."""
    recipe = (ROOT / "cmake" / "TokenizerMend.cmake").read_text()
    before, after = (
        match[1].replace("\\n", "\n").replace('\\"', '"')
        for name in ("before", "after")
        if (match := re.search(rf'set\({name} "((?:[^"\\]|\\.)*)"\)', recipe))
    )
    name = "src/llama-vocab.cpp"
    source = (LLAMA / name).read_text(encoding="utf-8")
    mended = source.replace(before, after)
    assert mended != source, "the stamp says that the tokenizer was mended, and this tree leaves nothing to mend"
    lines = difflib.unified_diff(source.splitlines(keepends=True), mended.splitlines(keepends=True), f"a/{name}", f"b/{name}")
    return "".join(lines)
