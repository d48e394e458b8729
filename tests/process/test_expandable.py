"""Memory that a program maps for itself, in the order in which torch's expandable segments do: reserved addresses larger than
the device, handles that are made first and mapped then, chunk by chunk. Leased, it is paused like the rest.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.process.test_preload import fake_cudart, start_program, tags_of

if TYPE_CHECKING:
    from tests.process.conftest import Worker
    from vrambroker.client.rpc import Control

__all__ = ("fake_cudart", "start_program")

StartProgram = Callable[..., "Worker"]

PRELUDE = """
from ctypes import CFUNCTYPE, POINTER, Structure, c_int, c_uint, c_ulonglong, c_ubyte
class Properties(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("location", c_int), ("number", c_int), ("windows", c_void_p),
                ("flags", c_ubyte * 8)]
class Access(Structure):
    _fields_ = [("location", c_int), ("number", c_int), ("flags", c_int)]
def entry(name, *arguments):
    found, result = c_void_p(), c_int()
    assert cuda.cudaGetDriverEntryPointByVersion(name.encode(), byref(found), 12000, c_ulonglong(0), byref(result)) == 0
    return CFUNCTYPE(c_int, *arguments)(found.value)
handle_t = pointer_t = c_ulonglong
reserve_ = entry("cuMemAddressReserve", POINTER(pointer_t), c_size_t, c_size_t, pointer_t, c_ulonglong)
unreserve_ = entry("cuMemAddressFree", pointer_t, c_size_t)
create_ = entry("cuMemCreate", POINTER(handle_t), c_size_t, POINTER(Properties), c_ulonglong)
release_ = entry("cuMemRelease", handle_t)
map_ = entry("cuMemMap", pointer_t, c_size_t, c_size_t, handle_t, c_ulonglong)
unmap_ = entry("cuMemUnmap", pointer_t, c_size_t)
access_ = entry("cuMemSetAccess", pointer_t, c_size_t, POINTER(Access), c_size_t)
export_ = entry("cuMemExportToShareableHandle", POINTER(c_int), handle_t, c_int, c_ulonglong)
fake.fakeTotal(64 * MIB)
PINNED = Properties(type=1, location=1)
class Segment:
    def __init__(self, chunk, size=72 * MIB):
        self.chunk, self.size, self.handles = chunk, size, {}
        base = pointer_t()
        assert reserve_(byref(base), size, 0, 0, 0) == 0
        self.base = base.value
    def grow(self, begin, end):
        made = {}
        for i in range(begin, end):
            handle = handle_t()
            result = create_(byref(handle), self.chunk, byref(PINNED), 0)
            if result:
                assert all(release_(one) == 0 for one in made.values())
                return result
            made[i] = handle.value
        for i, handle in made.items():
            assert map_(self.at(i), self.chunk, 0, handle, 0) == 0
        assert access_(self.at(begin), (end - begin) * self.chunk, byref(Access(1, 0, 3)), 1) == 0
        self.handles.update(made)
        return 0
    def shrink(self, begin, end):
        for i in range(begin, end):
            assert unmap_(self.at(i), self.chunk) == 0 and release_(self.handles.pop(i)) == 0
    def at(self, i):
        return self.base + i * self.chunk
"""


def test_segments_grow_shrink_and_are_paused(start_program: StartProgram, control: "Control") -> None:
    source = """
from vrambroker.client import connect
large, small = Segment(5 * MIB), Segment(2 * MIB)
tell(large.grow(0, 4), small.grow(0, 1), fake.fakeUsed())
for i in range(4):
    fill(large.at(i), large.chunk, i + 1)
fill(small.base, small.chunk, 9)
told()
memory = connect("trainer")
tell(*memory.process_tags)
large.shrink(1, 3)
told()
memory.pause(release=True)
plain = malloc(2 * MIB)
other = Segment(2 * MIB)
tell(other.grow(0, 2), *memory.process_tags)
told()
memory.resume()
tell(holds(large.at(0), large.chunk, 1), holds(large.at(3), large.chunk, 4), holds(small.base, small.chunk, 9))
assert large.grow(1, 2) == 0
fill(large.at(1), large.chunk, 7)
tell(holds(large.at(0), large.chunk, 1), holds(large.at(1), large.chunk, 7), holds(large.at(3), large.chunk, 4))
large.shrink(0, 2), large.shrink(3, 4), small.shrink(0, 1), other.shrink(0, 2)
assert free(plain) == 0
tell(unreserve_(large.base, large.size), Segment(5 * MIB).base == large.base)
told()
"""
    worker = start_program(PRELUDE + source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="trainer")
    assert worker.hear() == "0 0 0"
    leased = tags_of(control)
    assert list(leased) == ["trainer/all+e1", "trainer/all+e2"]
    assert leased["trainer/all+e1"] >= 20
    assert leased["trainer/all+e2"] >= 2
    assert worker.ask() == "all+e1 all+e2"
    worker.say()
    assert worker.hear() == "0 all all+e1 all+e2 all+e3"
    leased = tags_of(control)
    assert (leased["trainer/all+e1"], leased["trainer/all+e2"]) == (0, 0)
    assert worker.ask() == "True True True"
    assert worker.hear() == "True True True"
    assert worker.hear() == "0 True"


def test_a_device_that_is_full_says_so_before_anything_is_mapped(start_program: StartProgram) -> None:
    source = """
segment = Segment(4 * MIB)
steps = [segment.grow(i, i + 1) for i in range(17)]
tell(steps.count(0) >= 14, steps.count(2) >= 1, steps == sorted(steps))
tell(segment.grow(len(segment.handles), len(segment.handles) + 4), len(segment.handles) == steps.count(0))
segment.shrink(0, 4)
tell(segment.grow(0, 3))
"""
    worker = start_program(PRELUDE + source, VRAMBROKER_TAG="all")
    assert worker.hear() == "True True True"
    assert worker.hear() == "2 True"
    assert worker.hear() == "0"
    worker.end()


def test_memory_of_other_software_is_the_drivers(start_program: StartProgram) -> None:
    """A reservation as large as what it is for (NCCL, symmetric memory), handles that are exported, a process that leases
    nothing of its own: all of that is as without us.
    """
    source = """
import os
window = Segment(4 * MIB, size=8 * MIB)
assert window.grow(0, 2) == 0
fill(window.base, 8 * MIB, 3)
tell(fake.fakeUsed() // MIB, holds(window.base, 8 * MIB, 3))
window.shrink(0, 2)
tell(fake.fakeUsed(), unreserve_(window.base, window.size))
handle, fd = handle_t(), c_int()
assert create_(byref(handle), 4 * MIB, byref(PINNED), 0) == 0
tell(fake.fakeUsed(), export_(byref(fd), handle, 1, 0), os.fstat(fd.value).st_size // MIB, fake.fakeUsed() // MIB)
tell(release_(handle), fake.fakeUsed(), release_(handle) != 0, release_(12345) != 0)
bind_ = entry("cuMulticastBindMem", handle_t, c_size_t, handle_t, c_size_t, c_size_t, c_ulonglong)
assert create_(byref(handle), 4 * MIB, byref(PINNED), 0) == 0
tell(bind_(7, 0, handle, 0, 4 * MIB, 0), bind_(7, 0, 12345, 0, 4 * MIB, 0), release_(handle), fake.fakeUsed())
"""
    worker = start_program(PRELUDE + source, VRAMBROKER_TAG="all")
    assert worker.hear() == "8 True"
    assert worker.hear() == "0 0"
    assert worker.hear() == "0 0 4 4"
    assert worker.hear() == "0 0 True True"
    assert worker.hear() == "0 1 0 0"
    worker.end()
    plain = start_program(PRELUDE + "segment = Segment(4 * MIB)\ntell(segment.grow(0, 2), fake.fakeUsed() // MIB)")
    assert plain.hear() == "0 8"
    plain.end()


def test_what_can_t_be_is_refused(start_program: StartProgram) -> None:
    source = """
segment = Segment(4 * MIB)
assert segment.grow(0, 1) == 0
handle, fd = handle_t(), c_int()
assert create_(byref(handle), 4 * MIB, byref(PINNED), 0) == 0
tell(map_(segment.at(0), 4 * MIB, 0, handle, 0), map_(segment.at(1), 2 * MIB, 0, handle, 0))
tell(map_(segment.at(1), 4 * MIB, 2 * MIB, handle, 0), map_(segment.at(1), 4 * MIB, 0, handle, 0))
tell(map_(segment.at(2), 4 * MIB, 0, handle, 0), unmap_(segment.at(1), 2 * MIB), export_(byref(fd), handle, 1, 0))
tell(unmap_(segment.at(1), 4 * MIB), map_(segment.at(2), 4 * MIB, 0, handle, 0))
tell(create_(byref(handle), 1024 * MIB, byref(PINNED), 0), fake.fakeUsed())
tell(create_(byref(handle), MIB, byref(Properties(type=1, location=1, handles=8)), 0))
"""
    worker = start_program(PRELUDE + source, VRAMBROKER_TAG="all")
    assert worker.hear() == "1 1"
    assert worker.hear() == "1 0"
    assert worker.hear() == "1 1 1"
    assert worker.hear() == "0 0"
    assert worker.hear() == "2 0"
    assert worker.hear() == "800", "what the driver does not make is not promised"
    worker.end()


def test_addresses_that_were_given_back_while_they_were_paused_can_be_had_again(start_program: StartProgram) -> None:
    source = """
from vrambroker.client import connect
memory = connect("trainer")
first = Segment(5 * MIB)
assert first.grow(0, 1) == 0
memory.pause()
first.shrink(0, 1)
tell(unreserve_(first.base, first.size))
second = Segment(5 * MIB)
tell(second.base == first.base, second.grow(0, 2), *memory.process_tags)
fill(second.base, 5 * MIB, 1)
"""
    worker = start_program(PRELUDE + source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="trainer")
    assert worker.hear() == "0"
    assert worker.hear() == "True 0 all+e1"
    worker.end()


def test_a_thread_that_is_left_out_maps_the_drivers_memory(start_program: StartProgram) -> None:
    source = """
from vrambroker.client import connect, native
before = native.thread_leases(False)
plain = Segment(5 * MIB)
tell(plain.grow(0, 2), fake.fakeUsed() // MIB)
fill(plain.base, plain.chunk, 3)
native.thread_leases(before)
leased = Segment(5 * MIB)
tell(leased.grow(0, 1), fake.fakeUsed() // MIB)
connect("trainer").pause(release=True)
tell(holds(plain.base, plain.chunk, 3), *connect("trainer").process_tags)
plain.shrink(0, 2)
tell(fake.fakeUsed())
"""
    worker = start_program(PRELUDE + source, VRAMBROKER_TAG="all", VRAMBROKER_NAME="trainer")
    assert worker.hear() == "0 10"
    assert worker.hear() == "0 10"
    assert worker.hear() == "True all+e1"
    assert worker.hear() == "0"
