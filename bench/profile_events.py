"""A profiled call as rows: time by place, pass and kind of operation, each moment counted once."""

from collections import defaultdict

from torch.autograd import DeviceType

from fastseg.bench.profile_kinds import NOTHING, flops_of, kinds_of
from fastseg.bench.profile_places import PREFIX, TAIL

BACKWARD_NODE = "autograd::engine::evaluate_function: "
IDLE = "GPU idle"


def rows(events, elapsed_us, dtype):
    """[{"place", "pass", "kind", "ms", "flops"}] of what torch.profiler saw (prof.events()) of one call.

    On a CPU an event's time is what it spent outside of the events that it called; on a GPU, that of the kernels which
    it launched itself, and what is left of `elapsed_us` is IDLE. A node of the backward pass has the place of the
    forward operation with its sequence number; one without a number, that of the node before it.
    """
    calls = sorted((e for e in events if e.device_type == DeviceType.CPU), key=lambda e: e.time_range.start)
    walk = _Walk(_forward_places(calls), dtype)
    for event in calls:
        if event.cpu_parent is None:
            walk.visit(event, TAIL, "forward", NOTHING)
    if any(event.use_device == "cuda" for event in calls):
        busy = sum(microseconds for microseconds, _ in walk.cells.values())
        walk.cells[TAIL, "forward", IDLE][0] += max(elapsed_us - busy, 0)
    return [
        {"place": place, "pass": which, "kind": kind, "ms": microseconds / 1e3, "flops": int(flops)}
        for (place, which, kind), (microseconds, flops) in walk.cells.items()
        if microseconds or flops
    ]


def _forward_places(calls):
    """{sequence number: place}. Several operations see the number of the next node: the last one makes that."""
    found = {}
    for event in calls:
        if event.sequence_nr >= 0:
            place = _forward_place(event)
            if place is not None:
                found[event.sequence_nr] = place
    return found


def _forward_place(event):
    while event is not None:
        if event.name.startswith(BACKWARD_NODE):
            return None
        if event.name.startswith(PREFIX):
            return event.name.removeprefix(PREFIX)
        event = event.cpu_parent
    return TAIL


class _Walk:
    def __init__(self, places, dtype):
        self.places, self.dtype = places, dtype
        self.cells = defaultdict(lambda: [0, 0])  # (place, pass, kind): microseconds, flops
        self.last = TAIL  # place of the last node of the backward pass

    def visit(self, event, place, which, kinds):
        if event.name.startswith(PREFIX):
            place, kinds = event.name.removeprefix(PREFIX), NOTHING
        elif event.name.startswith(BACKWARD_NODE):
            which, place = "backward", self.places.get(event.sequence_nr, self.last)
            self.last = place
        around, kinds = kinds, kinds_of(event, kinds, self.dtype)
        flops = flops_of(event) if kinds != around else 0
        microseconds = _own_time(event)
        for kind, share in kinds:
            cell = self.cells[place, which, kind]
            cell[0] += share * microseconds
            cell[1] += flops
        for child in sorted(event.cpu_children, key=lambda e: e.time_range.start):
            self.visit(child, place, which, kinds)


def _own_time(event):
    if event.use_device != "cuda":
        return event.self_cpu_time_total
    if event.is_user_annotation:  # has all kernels of its range
        return 0
    return sum(kernel.duration for kernel in event.kernels)
