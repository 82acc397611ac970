"""Which state may follow which, and on what? Trigger, TRANSITIONS. Pure."""

from __future__ import annotations

import enum

from modeld.types import State


class Trigger(enum.Enum):
    BEGIN = "begin"  # an op takes the model away: admission stops
    LOADED = "loaded"  # the op's model is warm and answers from now on
    RESTORED = "restored"  # the op failed, and the model before answers again
    EMPTIED = "emptied"  # without a fault there is no model, and none is to answer
    RESTED = "rested"  # there is none, and the next request brings one (auto_switch)
    FAILED = "failed"  # the op ended and no model answers
    DIED = "died"  # the engine of the model that answers ended by itself
    STOPPED = "stopped"  # the daemon ends


# Initially: LOADING with a model to load at start; without, ERROR (no_model), or READY where the next request brings one.
TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.READY, Trigger.BEGIN): State.LOADING,
    (State.READY, Trigger.LOADED): State.READY,  # overlap: the next request goes to the new model
    (State.READY, Trigger.FAILED): State.READY,  # auto_switch without a model: the op failed before it began
    (State.READY, Trigger.DIED): State.LOADING,  # an op is queued by then: a reload, or a switch that waited
    (State.READY, Trigger.EMPTIED): State.ERROR,  # auto_switch is turned off without a model
    (State.READY, Trigger.STOPPED): State.ERROR,
    (State.LOADING, Trigger.BEGIN): State.LOADING,  # the first op, and the one after a death
    (State.LOADING, Trigger.LOADED): State.READY,
    (State.LOADING, Trigger.RESTORED): State.READY,
    (State.LOADING, Trigger.EMPTIED): State.ERROR,
    (State.LOADING, Trigger.RESTED): State.READY,
    (State.LOADING, Trigger.FAILED): State.ERROR,
    (State.LOADING, Trigger.STOPPED): State.ERROR,
    (State.ERROR, Trigger.BEGIN): State.LOADING,
    (State.ERROR, Trigger.FAILED): State.ERROR,  # before it began
    (State.ERROR, Trigger.RESTED): State.READY,  # auto_switch is turned on without a model
    (State.ERROR, Trigger.STOPPED): State.ERROR,
}


class InvalidTransition(Exception):
    """A trigger that the state does not know; nothing has changed."""

    def __init__(self, state: State, trigger: Trigger) -> None:
        super().__init__(f"{trigger.value} is not possible in state {state.value}")
        self.state = state
        self.trigger = trigger
