"""What does the process do that tries a library? It opens it, decodes the reference, compares the logits, and reports.

Started by modeld.llm.variants with one argument, a JSON object; answers with one line of JSON. A library that this CPU cannot run
ends this process and no other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from modeld.llm.trial import settle


def main(order: str) -> None:
    """Never returns: the process ends with status 0 when the report has been written, good or bad."""
    values: dict[str, Any] = json.loads(order)
    report = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for the report
    settle(values["parent_pid"], None, niceness=0)  # a start waits for it
    # Imported here: from now on this process leaves no core and dies with its parent.
    from modeld.errors import ModeldError
    from modeld.llm.reference import stored
    from modeld.llm.selftest import SelfTestError, check

    found: dict[str, object]
    try:
        with stored() as reference:
            found = {"off_by": check(Path(values["library"]), reference, on_one_thread=True)}
    except (SelfTestError, ModeldError) as error:
        found = {"reason": str(error)}
    os.write(report, (json.dumps(found) + "\n").encode())
    os._exit(0)
