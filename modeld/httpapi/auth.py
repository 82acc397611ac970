"""What must a request fulfil to be let in? Rules: browsers' and keys'; Gate: the ones in force."""

from __future__ import annotations

from dataclasses import dataclass, field

from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.caller import KeyRules


@dataclass(frozen=True, slots=True)
class Rules:
    browser: BrowserRules = field(default_factory=BrowserRules)
    keys: KeyRules = field(default_factory=KeyRules)


class Gate:
    """Any thread. A reload replaces `rules` as a whole; an exchange takes them once, so that it is judged by one set."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
