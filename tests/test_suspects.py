from itertools import count

from gateway.suspects import ALONE, LONGEST_REST, MOST, UNPROVEN, Suspects


def cut_until_guilty(suspects, job_id, *, alone=True):
    return next(n for n in count(1) if suspects.cut(job_id, alone=alone, now=0.0))


def test_the_second_cut_in_a_row_makes_a_message_go_alone():
    suspects = Suspects()
    assert not suspects.is_suspect("a")
    suspects.cut("a", alone=False, now=0.0)
    assert not suspects.is_suspect("a")
    suspects.cut("a", alone=False, now=0.0)
    assert suspects.is_suspect("a")
    suspects.answered("a", delivered=False)
    assert not suspects.is_suspect("a")


def test_cuts_in_company_are_nobody_s_failure():
    suspects = Suspects()
    assert not any(suspects.cut("a", alone=False, now=0.0) for _ in range(100))


def test_cuts_alone_count_sooner_if_others_got_through_since_the_first():
    suspects = Suspects()
    suspects.answered("before", delivered=True)
    assert cut_until_guilty(suspects, "lone") == UNPROVEN

    suspects.cut("poison", alone=False, now=0.0)
    suspects.answered("refused", delivered=False)
    assert [suspects.cut("poison", alone=True, now=0.0) for _ in range(ALONE)] == [False] * ALONE
    suspects.answered("other", delivered=True)
    assert suspects.cut("poison", alone=True, now=0.0)


def test_an_answer_in_between_begins_the_count_anew():
    suspects = Suspects()
    for _ in range(UNPROVEN - 1):
        suspects.cut("a", alone=True, now=0.0)
    suspects.answered("a", delivered=False)
    assert cut_until_guilty(suspects, "a") == UNPROVEN


def test_the_least_suspicious_is_tried_first_and_each_rests_longer_after_every_cut_alone():
    suspects = Suspects()
    for job_id, cuts in (("a", 3), ("b", 2)):
        for _ in range(cuts):
            suspects.cut(job_id, alone=False, now=0.0)
    assert suspects.next(["a", "b"], 0.0) == "b"
    suspects.cut("b", alone=True, now=0.0)
    assert suspects.next(["a", "b"], 0.0) == "a"
    assert suspects.next(["b"], 0.0) is None
    for _ in range(40):
        suspects.cut("b", alone=True, now=0.0)
    assert suspects.next(["b"], LONGEST_REST - 1) is None
    assert suspects.next(["b"], LONGEST_REST) == "b"


def test_what_is_remembered_has_a_bound():
    suspects = Suspects()
    for n in range(MOST + 1):
        for _ in range(2):
            suspects.cut(str(n), alone=False, now=0.0)
    assert not suspects.is_suspect("0")
    assert suspects.is_suspect("1")
