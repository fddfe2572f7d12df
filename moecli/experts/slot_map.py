"""Where the experts of one layer are: slots in RAM and in a device, which can change places, and who is in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from moecli.experts.policies import Policy, Slots


@dataclass(frozen=True, slots=True)
class Place:
    """One slot of the device's arena or of the one in RAM."""

    on_device: bool
    index: int


@dataclass(slots=True)
class Lookup:
    """What one pass asks for, by expert: the index of the slot it is in or has to go to, or that it only passes."""

    device: dict[int, int] = field(default_factory=dict)
    ram: dict[int, int] = field(default_factory=dict)
    to_device: dict[int, int] = field(default_factory=dict)
    to_ram: dict[int, int] = field(default_factory=dict)
    passing: list[int] = field(default_factory=list)


class SlotMap:
    """A policy over all slots of a layer, wherever they are. New experts take the first slots first."""

    def __init__(self, places: list[Place], policy: Policy) -> None:
        self._places = places
        self._policy = policy
        self._slots = Slots(len(places), policy)
        self._slot: dict[int, int] = {}  # by expert
        self._owners: dict[int, int] = {}  # by slot: the expert whose bytes are in it

    def __len__(self) -> int:
        return len(self._places)

    def find(self, counts: Mapping[int, int], tokens: int) -> Lookup:
        """Where the experts are that a pass of `tokens` tokens takes, `counts` times each; others leave for them.

        An expert that has to come is not there until its slot is `filled`.
        """
        found = Lookup()
        access = self._slots.access(counts, tokens)
        for expert, slot in (*access.hits, *access.misses):
            if slot is None:
                found.passing.append(expert)
                continue
            self._slot[expert] = slot
            place = self._places[slot]
            if self._owners.get(slot) == expert:
                (found.device if place.on_device else found.ram)[expert] = place.index
            else:
                self._owners.pop(slot, None)
                (found.to_device if place.on_device else found.to_ram)[expert] = place.index
        return found

    @property
    def filled_places(self) -> int:
        """How many have an expert in them."""
        return len(self._owners)

    @property
    def residents(self) -> dict[int, int]:
        """The experts in the device, and the slot of each."""
        places = {expert: self._places[slot] for slot, expert in self._owners.items()}
        return {expert: place.index for expert, place in places.items() if place.on_device}

    def in_ram(self, expert: int) -> int:
        """The slot in RAM that an expert is in."""
        return self._places[self._slot[expert]].index

    def filled(self, expert: int) -> None:
        """The bytes of this expert are in its slot."""
        self._owners[self._slot[expert]] = expert

    def weaker(self, expert: int, asked: Collection[int]) -> int | None:
        """The least valuable expert in the device, if it is worth less than this one and not asked for."""
        value = self._policy.value
        candidates = [
            other for slot, other in self._owners.items() if self._places[slot].on_device and other not in asked
        ]
        weakest = min(candidates, key=lambda other: (value(other), other), default=None)
        return weakest if weakest is not None and value(weakest) < value(expert) else None

    def strongest(self, experts: Collection[int]) -> int:
        """The most valuable of these experts."""
        return max(experts, key=lambda expert: (self._policy.value(expert), -expert))

    def exchange(self, incoming: int, leaving: int, spare: int) -> int:
        """One from RAM goes to the spare slot of the device, one from the device to RAM. Returns the slot it leaves."""
        into, out_of = self._slot[incoming], self._slot[leaving]
        freed = self._places[out_of].index
        self._places[into], self._places[out_of] = Place(True, spare), self._places[into]
        return freed
