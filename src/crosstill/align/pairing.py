"""Which parts of two renderings of one row belong together.

Never by position alone: a content pairs with the same characters of the same message, a special
token with the one of the same role in the same message, if both sides have as many of them.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from crosstill.text.render import Part


@dataclass(frozen=True)
class PartPair:
    """A student's and a teacher's part, and the characters that both have.

    Attributes:
        student: The student's part.
        teacher: The teacher's part.
        student_at: Content: characters of the student's part before the common ones.
        teacher_at: Content: characters of the teacher's part before them.
        length: Content: how many characters are common.
    """

    student: Part
    teacher: Part
    student_at: int = 0
    teacher_at: int = 0
    length: int = 0

    @property
    def text(self) -> str:
        """The common characters."""
        return self.student.text[self.student_at : self.student_at + self.length]


def pair_parts(student: tuple[Part, ...], teacher: tuple[Part, ...]) -> list[PartPair]:
    """The parts that both sides have, in an order that both sides keep."""
    others = defaultdict(list)
    for part in teacher:
        others[part.kind, part.role, part.message].append(part)
    counts = defaultdict(int)
    for part in student:
        counts[part.kind, part.role, part.message] += 1
    seen, pairs = defaultdict(int), []
    for part in student:
        key = part.kind, part.role, part.message
        if part.kind == "content":
            pairs += [pair for other in others[key] if (pair := _overlap(part, other))]
        elif counts[key] == len(others[key]):
            pairs.append(PartPair(part, others[key][seen[key]]))
            seen[key] += 1
    return _in_order(pairs, teacher)


def _overlap(student: Part, teacher: Part) -> PartPair | None:
    """The characters of the message that both parts hold, if they are the same there."""
    start = max(student.offset, teacher.offset)
    end = min(student.offset + len(student.text), teacher.offset + len(teacher.text))
    if start >= end:
        return None
    pair = PartPair(student, teacher, start - student.offset, start - teacher.offset, end - start)
    held = teacher.text[pair.teacher_at : pair.teacher_at + pair.length]
    return pair if held == pair.text else None


def _in_order(pairs: list[PartPair], teacher: tuple[Part, ...]) -> list[PartPair]:
    """Where templates order things differently, keeps the largest set of pairs in one order."""
    place = {id(part): k for k, part in enumerate(teacher)}
    keys = [(place[id(pair.teacher)], pair.teacher_at) for pair in pairs]
    if all(one <= next_one for one, next_one in pairwise(keys)):
        return pairs
    best: list[int] = []  # most characters in a chain that ends here
    before: list[int] = []
    for k, pair in enumerate(pairs):
        earlier = max((j for j in range(k) if keys[j] <= keys[k]), key=best.__getitem__, default=-1)
        best.append((best[earlier] if earlier >= 0 else 0) + 1 + pair.length)
        before.append(earlier)
    kept, k = [], max(range(len(pairs)), key=best.__getitem__)
    while k >= 0:
        kept.append(pairs[k])
        k = before[k]
    return kept[::-1]
