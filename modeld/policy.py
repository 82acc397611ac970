"""How careful is a switch? The choices that a request may make, and what the operator has chosen where it makes none."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class OnInflight(enum.StrEnum):
    """What becomes of requests that run on the model that leaves."""

    CANCEL = "cancel"  # they end with `model_switched`
    DRAIN = "drain"  # they may end by themselves, for drain_timeout_s


class OnBusy(enum.StrEnum):
    """What becomes of a switch that is asked for while others run or wait."""

    QUEUE = "queue"
    REJECT = "reject"  # 409 switch_rejected
    SUPERSEDE = "supersede"  # those before it are cancelled


class OnFailure(enum.StrEnum):
    """What answers after a switch that failed when the old model had gone."""

    ROLLBACK = "rollback"  # the model before
    ERROR = "error"  # none


class Strategy(enum.StrEnum):
    """In which order the old model goes and the new one comes."""

    REPLACE = "replace"  # first the one, then the other
    OVERLAP = "overlap"  # the new one is loaded beside the old one, which answers meanwhile
    AUTO = "auto"  # overlap where memory allows it, else replace


class AtStart(enum.StrEnum):
    """Which model a start of the daemon loads."""

    LAST = "last"  # the one that answered last, if it is known; else default_model
    DEFAULT = "default"  # default_model


@dataclass(frozen=True, slots=True)
class SwitchOptions:
    """How one switch is done."""

    on_inflight: OnInflight = OnInflight.CANCEL
    drain_timeout_s: float = 300.0
    on_busy: OnBusy = OnBusy.QUEUE
    on_failure: OnFailure = OnFailure.ROLLBACK
    strategy: Strategy = Strategy.REPLACE
    ready_delay_s: float = 0.0  # before admission stops, /readyz is at 503 for so long
    force: bool = False  # whatever cooldown, quarantine and the estimate of memory say


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """The section `switching` of the configuration: the defaults of SwitchOptions, and what no request decides."""

    on_inflight: OnInflight = OnInflight.CANCEL
    drain_timeout_s: int = 300
    on_busy: OnBusy = OnBusy.QUEUE
    on_failure: OnFailure = OnFailure.ROLLBACK
    strategy: Strategy = Strategy.REPLACE
    ready_delay_s: int = 0  # from /readyz at 503 to the end of admission, so that balancers look away first
    at_start: AtStart = AtStart.LAST
    cooldown_failures: int = 3  # failures in a row that begin a cooldown; 0: never
    cooldown_s: int = 60  # of the first one; each further failure doubles it, up to an hour
    load_stall_timeout_s: int = 120  # a load without progress for so long has failed; 0: never
    prefetch: bool = True  # read the file ahead while the old model answers
    probe: bool = True  # decode a file that nobody vouched for in a process of its own first
    check_memory: bool = True  # refuse a switch that cannot fit
    kv_keep_bytes: int = 256 << 20  # of memory for KV cells of models that have left; 0: none are kept
    auto_switch: bool = False  # a request that names another registered model switches to it
    auto_switch_min_stay_s: int = 10  # before it is switched away again by a request
    idle_unload_s: int = 0  # a model that nobody used for so long is unloaded; 0: never
    watch_config: bool = True  # read the configuration again when its file changes

    def options(self) -> SwitchOptions:
        """What holds for a switch that asks for nothing."""
        return SwitchOptions(
            self.on_inflight, self.drain_timeout_s, self.on_busy, self.on_failure, self.strategy, self.ready_delay_s
        )
