"""Which parts of two renderings of one row belong together.

Never by position alone: a content pairs with the same characters of the same message, a special
token with the one of the same role in the same message, if both sides have as many of them.
"""

from dataclasses import dataclass

from crosstill.text.render import Part


@dataclass  # not frozen, for speed
class PartPair:
    """A student's and a teacher's part, and the characters that both have.

    Attributes:
        student: The student's part.
        teacher: The teacher's part.
        student_at: Content: characters of the student's part before the common ones.
        teacher_at: Content: characters of the teacher's part before them.
        text: Content: the common characters.
    """

    student: Part
    teacher: Part
    student_at: int = 0
    teacher_at: int = 0
    text: str = ""


def pair_parts(student: tuple[Part, ...], teacher: tuple[Part, ...]) -> list[PartPair]:
    """The parts that both sides have, in an order that both sides keep."""
    own, others = _by_place(student), _by_place(teacher)
    pairs = []
    for part in student:
        key = part.kind, part.role, part.message
        mates = others.get(key, ())
        if part.kind == "content":
            pairs += [pair for mate in mates if (pair := _overlap(part, mate))]
        elif len(mates) == len(own[key]):
            pairs.append(PartPair(part, mates[own[key].index(part)]))
    return _in_order(pairs, teacher)


def _by_place(parts: tuple[Part, ...]) -> dict[tuple[str, str, int], list[Part]]:
    """The parts of each kind and role in each message."""
    found = {}
    for part in parts:
        found.setdefault((part.kind, part.role, part.message), []).append(part)
    return found


def _overlap(student: Part, teacher: Part) -> PartPair | None:
    """The characters of the message that both parts hold, if they are the same there."""
    start = max(student.offset, teacher.offset)
    end = min(student.offset + len(student.text), teacher.offset + len(teacher.text))
    if start >= end:
        return None
    text = student.text[start - student.offset : end - student.offset]
    if text != teacher.text[start - teacher.offset : end - teacher.offset]:
        return None
    return PartPair(student, teacher, start - student.offset, start - teacher.offset, text)


def _in_order(pairs: list[PartPair], teacher: tuple[Part, ...]) -> list[PartPair]:
    """Where templates order things differently, keeps the largest set of pairs in one order."""
    place = {id(part): k for k, part in enumerate(teacher)}
    keys = [(place[id(pair.teacher)], pair.teacher_at) for pair in pairs]
    if keys == sorted(keys):
        return pairs
    best: list[int] = []  # most characters in a chain that ends here
    before: list[int] = []
    for k, pair in enumerate(pairs):
        earlier = max((j for j in range(k) if keys[j] <= keys[k]), key=best.__getitem__, default=-1)
        best.append((best[earlier] if earlier >= 0 else 0) + 1 + len(pair.text))
        before.append(earlier)
    kept, k = [], max(range(len(pairs)), key=best.__getitem__)
    while k >= 0:
        kept.append(pairs[k])
        k = before[k]
    return kept[::-1]
