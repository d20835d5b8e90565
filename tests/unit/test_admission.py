"""Who may run, and in which order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from claudejobs.reconcile.admission import Admission, Claim, Limits, Room
from claudejobs.reconcile.views import Key

START = datetime(2030, 1, 1, tzinfo=UTC)


def claim(name: str, age: int = 0, priority: int = 0, user: str | None = None, namespace: str = "a") -> Claim:
    """A job; the greater ``age``, the later it was made."""
    return Claim((namespace, name), user, priority, START + timedelta(seconds=age))


def admission(*waiting: Claim, total: int = 1, **limits: int) -> Admission:
    made = Admission(Limits(total, **limits))
    for one in waiting:
        made.wait(one)
    return made


def run_all(made: Admission, *waiting: Claim) -> list[str]:
    """Let one after the other go, each ending before the next; their names in order."""
    claims = {one.key: one for one in waiting}
    order = []
    while made.next_up():
        key = made.next_up()[0]
        order.append(key[1])
        made.hold(claims[key])
        made.release(key)
    return order


def test_the_older_job_goes_first() -> None:
    jobs = [claim("second", 2), claim("first", 1), claim("third", 3)]
    assert run_all(admission(*jobs), *jobs) == ["first", "second", "third"]


def test_higher_priority_goes_before_age() -> None:
    jobs = [claim("old", 1), claim("urgent", 9, priority=5), claim("lazy", 0, priority=-5)]
    assert run_all(admission(*jobs), *jobs) == ["urgent", "old", "lazy"]


def test_a_user_with_fewer_running_jobs_goes_first() -> None:
    jobs = [claim(f"many-{n}", n, user="ann") for n in range(4)] + [claim("one", 9, user="bob")]
    made = admission(*jobs, total=3)
    assert [key[1] for key in made.next_up()] == ["many-0", "one", "many-1"]


def test_the_total_limit_holds() -> None:
    jobs = [claim(str(n), n) for n in range(5)]
    made = admission(*jobs, total=2)
    assert [made.admits(one.key) for one in jobs] == [True, True, False, False, False]
    made.hold(jobs[0])
    assert [made.admits(one.key) for one in jobs] == [True, True, False, False, False]
    assert made.release(jobs[0].key)
    assert [key[1] for key in made.next_up()] == ["1", "2"]


def test_a_full_namespace_is_passed_over() -> None:
    jobs = [claim("a1", 1), claim("a2", 2), claim("b1", 3, namespace="b")]
    made = admission(*jobs, total=3, per_namespace=1)
    assert [key[1] for key in made.next_up()] == ["a1", "b1"]
    made.hold(jobs[0])
    assert "MAX_JOBS_PER_NAMESPACE" in made.waiting_message(jobs[1].key)


def test_a_full_user_is_passed_over_and_nobody_is_no_user() -> None:
    jobs = [claim("u1", 1, user="u"), claim("u2", 2, user="u"), claim("n1", 3), claim("n2", 4)]
    made = admission(*jobs, total=9, per_user=1)
    assert sorted(key[1] for key in made.next_up()) == ["n1", "n2", "u1"]
    made.hold(jobs[0])
    assert "MAX_JOBS_PER_USER" in made.waiting_message(jobs[1].key)


def test_a_waiting_job_is_told_its_position() -> None:
    jobs = [claim(str(n), n) for n in range(150)]
    made = admission(*jobs)
    assert made.waiting_message(jobs[2].key).endswith("position 3")
    assert made.waiting_message(jobs[149].key).endswith("more than 100 are before it")


def test_more_jobs_than_the_limit_may_hold_a_slot_after_it_was_lowered() -> None:
    made = admission(claim("waits", 9))
    made.hold(claim("x"))
    made.hold(claim("y"))
    assert made.next_up() == []
    made.release(("a", "x"))
    assert made.next_up() == []


def test_a_job_in_backoff_gives_its_slot_to_another() -> None:
    one, two = claim("one", 1), claim("two", 2)
    made = admission(one, two)
    made.hold(one)
    assert not made.admits(two.key)
    assert made.release(one.key)
    assert made.admits(two.key)


def test_a_job_that_changes_its_claim_is_counted_once() -> None:
    made = admission(claim("one", 1), claim("one", 1, priority=3), total=5)
    assert made.next_up() == [("a", "one")]
    assert made.release(("a", "one"))
    assert made.next_up() == []
    assert not made.release(("a", "one"))


jobs = st.lists(
    st.builds(
        claim,
        st.integers(0, 30).map(str),
        st.integers(0, 9),
        st.integers(-1, 1),
        st.sampled_from([None, "u", "v"]),
        st.sampled_from(["a", "b"]),
    ),
    unique_by=lambda one: one.key,
    max_size=20,
)


@given(jobs, st.integers(1, 4), st.integers(1, 3) | st.none(), st.integers(1, 3) | st.none())
def test_limits_hold_and_everybody_gets_a_turn(
    waiting: list[Claim], total: int, per_namespace: int | None, per_user: int | None
) -> None:
    made = Admission(Limits(total, per_namespace, per_user))
    for one in waiting:
        made.wait(one)
    claims: dict[Key, Claim] = {one.key: one for one in waiting}
    running: list[Claim] = []
    served = set()
    while made.next_up() or running:
        for key in made.next_up():
            if made.admits(key):
                made.hold(claims[key])
                running.append(claims[key])
                served.add(key)
        assert len(running) <= total
        for namespace in "ab":
            assert sum(one.key[0] == namespace for one in running) <= (per_namespace or total)
        for user in "uv":
            assert sum(one.user == user for one in running) <= (per_user or total)
        made.release(running.pop(0).key)
    assert served == set(claims)


def test_jobs_that_wait_for_their_own_user_are_told_from_those_that_wait_for_a_slot() -> None:
    jobs = [claim(f"u{n}", n, user="u") for n in range(5)] + [claim("n", 9), claim("b", 9, user="u", namespace="b")]
    made = admission(*jobs, total=4, per_user=2)
    assert made.room("a") == Room(free=4, waiting=6, barred=3)
    made.hold(jobs[0])
    made.hold(jobs[1])
    assert made.room("a") == Room(free=2, waiting=4, barred=3)
    assert made.room("b") == Room(free=2, waiting=1, barred=1)
    assert made.room("c") == Room(free=2)
    assert admission(*jobs, total=4).room("a").barred == 0


def test_a_job_that_stands_aside_wants_a_slot_and_keeps_it_from_nobody() -> None:
    jobs = [claim("refused", 1), claim("next", 2)]
    made = admission(*jobs)
    assert made.stand_aside(("a", "refused"))
    assert made.next_up() == [("a", "next")]
    assert made.room("a") == Room(free=1, waiting=2)
    assert made.room("b") == Room(free=1)
    made.wait(jobs[0])
    assert made.next_up() == [("a", "refused")]
    assert made.room("a") == Room(free=1, waiting=2)
    assert made.stand_aside(("a", "refused"))
    made.hold(jobs[0])
    assert made.room("a") == Room(free=0, waiting=1)
    assert made.stand_aside(("a", "refused"))
    made.release(("a", "refused"))
    assert made.room("a") == Room(free=1, waiting=1)
    assert not made.stand_aside(("a", "refused")), "it wants no slot any more"
    assert made.room("a") == Room(free=1, waiting=1)
