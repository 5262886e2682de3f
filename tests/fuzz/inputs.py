# SPDX-License-Identifier: MIT
"""Runs a target's inputs, a batch for each seed, and tells the kinds of faults apart."""

from random import Random

from tests.fuzz.outputs import SECONDS, Fault, TooLongError, fault_of, limited
from tests.fuzz.targets import Target


class Inputs:
    """One target: each kind of fault is reported once."""

    def __init__(self, target: Target) -> None:
        self._one = target.make()
        self._batch = target.batch
        self.places: set[str] = set()
        self.count = 0

    def run(self, seed: int) -> list[Fault]:
        """The faults of this seed's inputs that are of a new kind."""
        chance = Random(seed)
        new = []
        for _ in range(self._batch):
            self.count += 1
            try:
                with limited(SECONDS):
                    self._one(chance)
            except (Exception, TooLongError) as error:
                fault = fault_of("", error)
                if fault.place not in self.places:
                    self.places.add(fault.place)
                    new.append(fault)
        return new
