"""Who waited, what happened and why: what the events told of it, and nothing else."""

from dataclasses import replace

from tests.unit.test_timeline import MIB, SECOND, Book, two_sides
from vrambroker.client.timeline import history_of
from vrambroker.client.timeline.history import Step


def test_a_wait_lasts_from_its_question_to_its_answer() -> None:
    book = Book(64)
    book.add(1, "ticket_queued", session="a", tag="t", ticket=3, why="a/t asks for room")
    book.add(1.5, "ticket_admitted", session="a", tag="t", ticket=3, why="certain")
    book.add(2, "ticket_queued", session="b", tag="t", ticket=4, why="b/t asks for room")
    book.add(3, "ticket_done", session="a", tag="t", ticket=3, why="all has arrived")
    book.add(4, "ticket_refused", session="b", tag="t", ticket=4, why="0 are free; held by a/t")
    book.add(5, "phase_entering", phase="train", why="1 leaves")
    book.add(6, "phase_entered", phase="train", why="done")
    book.add(7, "ticket_queued", session="a", tag="t", ticket=5, why="again")
    book.add(8, "ticket_queued", session="b", tag="t", ticket=6, why="again")
    book.add(9, "session_ended", session="b", why="b: exited")
    book.mark(10, "end")
    waits = book.history().waits
    assert [(wait.ticket, wait.phase, wait.outcome, (wait.end_ns - wait.begin_ns) / SECOND) for wait in waits] == [
        (3, "", "done", 2),
        (4, "", "refused", 2),
        (0, "train", "done", 1),
        (5, "", "waiting", 3),
        (6, "", "refused", 1),
    ]
    assert (waits[1].asked, waits[1].answered) == ("b/t asks for room", "0 are free; held by a/t")


def test_pauses_and_resumes_are_told_by_what_became_of_a_lease() -> None:
    book = Book(64)
    for at_s, state in enumerate(("arriving", "resident", "arriving", "resident", "idle", "leaving", "partial")):
        book.lease(at_s, "a/t", 1, 4, 0, state)
    for at_s, state in enumerate(("arriving", "partial", "arriving", "resident", ""), start=7):
        book.lease(at_s, "a/t", 1, 4, 0, state)
    told = [(incident.kind, incident.at_ns // SECOND) for incident in book.history().incidents]
    assert told == [("paused", 4), ("resumed", 10)]


def test_what_leaves_says_for_whom() -> None:
    book = Book(64)
    book.lease(1, "a/t", 1, 8, 8, "idle")
    book.add(2, "recalled", session="a", tag="t", lease=1, why="idle, and b/t needs the room")
    book.lease(2, "a/t", 1, 8, 8, "leaving")
    book.lease(3, "a/t", 1, 0, 8, "parked")
    book.lease(4, "a/t", 1, 8, 0, "resident")
    steps = book.history().tracks[0].steps
    assert [(step.state, step.cause) for step in steps] == [
        ("idle", ""),
        ("leaving", "idle, and b/t needs the room"),
        ("parked", "idle, and b/t needs the room"),
        ("resident", ""),
    ]
    assert [(step.idle_bytes, step.moving_bytes) for step in steps] == [(8 * MIB, 0), (0, 8 * MIB), (0, 0), (0, 0)]


def test_what_held_before_holds_from_the_beginning() -> None:
    book = two_sides(3)
    cut = next(number for number, event in enumerate(book.events) if event.why == "train 1")
    standing = [replace(event, standing=True) for event in book.events[cut - 6 : cut] if event.kind != "marked"]
    history = history_of(book.status(), [*standing, *book.events[cut:]])
    assert not history.complete
    assert history.begin_ns == book.events[cut].time_ns
    firsts: list[Step] = [track.steps[0] for track in history.tracks]
    assert all(step.at_ns == history.begin_ns for step in firsts)
    assert [(step.device_bytes // MIB, step.state) for step in firsts] == [(0, "parked"), (20, "resident")]


def test_what_is_outside_is_a_step_of_its_own() -> None:
    book = Book(64)
    book.add(1, "outside_changed", outside_bytes=5, why="5 bytes are outside of leases")
    book.add(2, "outside_changed", outside_bytes=None, why="room is over")
    book.add(3, "outside_changed", outside_bytes=0, why="nothing is")
    assert [(one.at_ns // SECOND, one.size_bytes) for one in book.history().outside] == [(1, 5), (3, 0)]
