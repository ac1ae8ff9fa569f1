"""What a chunk is, said the slow and plain way: sets of points, no pointers, no arrays."""

from itertools import pairwise


def chunks_of_line(student, teacher):
    """Chunks from token coordinates: `[(start, end), ...]` on the common line.

    `student` and `teacher` are lists of `(start, end)`; a negative start is outside the line.
    """
    tokens = [
        [(start, end) for start, end in side if 0 <= start < end] for side in (student, teacher)
    ]
    points = [{p for token in side for p in token} for side in tokens]
    covered = [{p for start, end in side for p in range(start, end)} for side in tokens]
    found = []
    for start, end in pairwise(sorted(points[0] & points[1])):
        stretch = set(range(start, end))
        if stretch <= covered[0] and stretch <= covered[1]:
            found.append((start, end))
    return found


def chunk_of_tokens(side, chunks):
    """The chunk index of every token of one side, -1 for none."""
    out = []
    for start, end in side:
        inside = [k for k, (a, b) in enumerate(chunks) if a <= start < b and end <= b]
        ending = [k for k, (_, b) in enumerate(chunks) if start == end == b]
        out.append((inside + ending + [-1])[0] if start >= 0 else -1)
    return out


def token_ends(pieces):
    """The cumulative byte ends of a list of byte strings."""
    ends, at = [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    return ends


def common_boundaries(student_pieces, teacher_pieces):
    """All byte positions, the start included, where tokens of both sides end."""
    return sorted({0} | (set(token_ends(student_pieces)) & set(token_ends(teacher_pieces))))


def boundaries_of_original(text, spelled, ends):
    """The byte positions of character prefixes of `text` where a rewriting side has an edge.

    A prefix counts if spelling it apart from the rest changes nothing: what the tokenizer writes
    for the whole is what it writes for both parts. `ends` are the side's byte ends.
    """
    edges = {0, *ends}
    whole = spelled(text)
    found = set()
    for k in range(len(text) + 1):
        head, tail = spelled(text[:k]), spelled(text[k:])
        if head + tail == whole and len(head) in edges:
            found.add(len(text[:k].encode()))
    return found


def places_of_edge(edge, pieces):
    """All positions of the original text that an edge in the rewritten one can stand for.

    `pieces` are `(o0, o1, n0, n1, unchanged)` in order, tiling both texts.
    """
    seams = [(0, 0)] + [(o1, n1) for _, o1, _, n1, _ in pieces]
    there = [old for old, new in seams if new == edge]
    if there:
        return set(range(min(there), max(there) + 1))
    for o0, _, n0, n1, unchanged in pieces:
        if n0 < edge < n1:
            return {o0 + edge - n0} if unchanged else set()
    raise AssertionError("edge outside the text")


def most_chunks(student_edges, student_pieces, teacher_edges, teacher_pieces):
    """The largest number of chunks that cut both rewritings at the same places of the original.

    A chunk holds at least one token of each side and one byte of the original text. None is
    possible if a side spells nothing.
    """
    if len(student_edges) < 2 or len(teacher_edges) < 2:
        return 0
    places = [
        {edge: places_of_edge(edge, pieces) for edge in edges}
        for edges, pieces in ((student_edges, student_pieces), (teacher_edges, teacher_pieces))
    ]
    last_place = student_pieces[-1][1]
    best = {}  # (student edge, teacher edge, place) -> longest chain of meetings that ends there
    for s in student_edges:
        for t in teacher_edges:
            for place in places[0][s] & places[1][t]:
                earlier = [n for (a, b, c), n in best.items() if a < s and b < t and c < place]
                best[s, t, place] = 1 + max(earlier, default=0)
    return best[student_edges[-1], teacher_edges[-1], last_place] - 1
